// Registers of 8 floats: AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
    using Reg = __m256;
    static constexpr int W = 8;
    static constexpr int kAccumulators = 12;
    static constexpr int kDots = 8;  // inner products at a time
    static constexpr int kTokenBlock = 4;

    static Reg load(const float* p) { return _mm256_loadu_ps(p); }
    static Reg load(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
    static Reg load(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
    }
    template <class T>
    static Reg load(const T* p, int n) {
        T padded[W] = {};
        std::memcpy(padded, p, n * sizeof(T));
        return load(padded);
    }
    static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
    static Reg zero() { return _mm256_setzero_ps(); }
    static Reg set1(float x) { return _mm256_set1_ps(x); }
    static Reg set_pair(const float* p) { return _mm256_setr_ps(p[0], p[1], p[0], p[1], p[0], p[1], p[0], p[1]); }
    static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
    static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
    static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
    static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
    static Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
    static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }  // b where either is NaN
    static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }  // b where either is NaN
    static Reg max_abs(Reg a, Reg b) { return max(a, _mm256_andnot_ps(set1(-0.0f), b)); }
    static bool any_above(Reg a, float limit) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a, set1(limit), _CMP_GT_OQ)) != 0;
    }
    static Reg below_or(Reg a, float limit, Reg yes, Reg no) {  // a < limit ? yes : no
        return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, set1(limit), _CMP_LT_OQ));
    }
    static Reg scale_by_power(Reg p, Reg biased) {  // p * 2^n, n in the low bits of `biased`
        __m256i e = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
    }
    static void add_tail(Reg tail, Reg& even, Reg& odd) {
        even = add(even, _mm256_blend_ps(tail, zero(), 0xaa));
        odd = add(odd, _mm256_blend_ps(zero(), tail, 0xaa));
    }
    static void interleave(Reg a, Reg b, Reg& low, Reg& high) {  // a0 b0 a1 b1 ...
        Reg x = _mm256_unpacklo_ps(a, b), y = _mm256_unpackhi_ps(a, b);
        low = _mm256_permute2f128_ps(x, y, 0x20);
        high = _mm256_permute2f128_ps(x, y, 0x31);
    }
    // Rows of W floats become columns.
    static void transpose(Reg (&a)[8]) {
        Reg b[8];
        for (int i = 0; i < 8; i += 4) {
            Reg x0 = _mm256_unpacklo_ps(a[i], a[i + 1]), x1 = _mm256_unpackhi_ps(a[i], a[i + 1]);
            Reg x2 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]), x3 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
            b[i] = _mm256_shuffle_ps(x0, x2, 0x44);
            b[i + 1] = _mm256_shuffle_ps(x0, x2, 0xee);
            b[i + 2] = _mm256_shuffle_ps(x1, x3, 0x44);
            b[i + 3] = _mm256_shuffle_ps(x1, x3, 0xee);
        }
        for (int i = 0; i < 4; i++) {
            a[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
            a[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
        }
    }
    // Lane i: the sum of all lanes of a[i], added in the same tree whatever i.
    static Reg sum_lanes(const Reg (&a)[8]) {
        Reg x[4], y[2];
        for (int i = 0; i < 4; i++) {
            x[i] = add(_mm256_blend_ps(a[i], a[i + 4], 0xf0), _mm256_permute2f128_ps(a[i], a[i + 4], 0x21));
        }
        for (int i = 0; i < 2; i++) {
            y[i] = add(_mm256_blend_ps(x[i], x[i + 2], 0xcc), _mm256_shuffle_ps(x[i], x[i + 2], 0x4e));
        }
        Reg swapped = _mm256_permute_ps(_mm256_blend_ps(y[1], y[0], 0xaa), 0xb1);
        return add(_mm256_blend_ps(y[0], y[1], 0xaa), swapped);
    }
    static float sum(Reg a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }

    using Ints = __m256i;  // 2 W of int16
    static Ints load_ints(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
    static Ints no_ints() { return _mm256_setzero_si256(); }
    static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi16(a, b); }
    static Reg low_half(Ints a) { return widen(_mm256_castsi256_si128(a)); }
    static Reg high_half(Ints a) { return widen(_mm256_extracti128_si256(a, 1)); }

  private:
    static Reg widen(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(x)); }
};

}  // namespace
