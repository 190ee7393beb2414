// Registers of 16 floats: AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
    using Reg = __m512;
    static constexpr int W = 16;
    static constexpr int kAccumulators = 24;
    static constexpr int kDots = 16;  // inner products at a time
    static constexpr int kTokenBlock = 8;

    static Reg load(const float* p) { return _mm512_loadu_ps(p); }
    static Reg load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static Reg load(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static Reg load(const uint16_t* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p)); }
    static Reg load(const int8_t* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
    static Reg load(const int8_t* p, int n) { return widen(_mm_maskz_loadu_epi8(mask(n), p)); }
    static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
    static Reg zero() { return _mm512_setzero_ps(); }
    static Reg set1(float x) { return _mm512_set1_ps(x); }
    static Reg set_pair(const float* p) {  // p[0], p[1], p[0], p[1], ...
        double pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return _mm512_castpd_ps(_mm512_set1_pd(pair));
    }
    static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
    static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
    static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
    static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
    static Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
    static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
    static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }  // b where either is NaN
    static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }  // b where either is NaN
    static Reg max_abs(Reg a, Reg b) { return _mm512_range_ps(a, b, 0x0b); }
    static bool any_above(Reg a, float limit) {
        return _mm512_cmp_ps_mask(a, set1(limit), _CMP_GT_OQ) != 0;
    }
    static Reg below_or(Reg a, float limit, Reg yes, Reg no) {  // a < limit ? yes : no
        return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, set1(limit), _CMP_LT_OQ), yes);
    }
    static Reg scale_by_power(Reg p, Reg biased) {  // p * 2^n, n in the low bits of `biased`
        __m512i e = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), e));
    }
    static void add_tail(Reg tail, Reg& even, Reg& odd) {
        even = _mm512_mask_add_ps(even, 0x5555, even, tail);
        odd = _mm512_mask_add_ps(odd, 0xaaaa, odd, tail);
    }
    static void interleave(Reg a, Reg b, Reg& low, Reg& high) {  // a0 b0 a1 b1 ...
        const __m512i lo = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i hi = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        low = _mm512_permutex2var_ps(a, lo, b);
        high = _mm512_permutex2var_ps(a, hi, b);
    }
    // Rows of W floats become columns.
    static void transpose(Reg (&a)[16]) {
        Reg b[16];
        for (int i = 0; i < 16; i += 4) {
            Reg x0 = _mm512_unpacklo_ps(a[i], a[i + 1]), x1 = _mm512_unpackhi_ps(a[i], a[i + 1]);
            Reg x2 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]), x3 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
            b[i] = _mm512_shuffle_ps(x0, x2, 0x44);
            b[i + 1] = _mm512_shuffle_ps(x0, x2, 0xee);
            b[i + 2] = _mm512_shuffle_ps(x1, x3, 0x44);
            b[i + 3] = _mm512_shuffle_ps(x1, x3, 0xee);
        }
        for (int i = 0; i < 4; i++) {
            Reg x0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88), x1 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
            Reg x2 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
            Reg x3 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
            a[i] = _mm512_shuffle_f32x4(x0, x2, 0x88);
            a[i + 8] = _mm512_shuffle_f32x4(x0, x2, 0xdd);
            a[i + 4] = _mm512_shuffle_f32x4(x1, x3, 0x88);
            a[i + 12] = _mm512_shuffle_f32x4(x1, x3, 0xdd);
        }
    }
    // Lane i: the sum of all lanes of a[i], added in the same tree whatever i.
    static Reg sum_lanes(const Reg (&a)[16]) {
        Reg x[8];
        for (int i = 0; i < 8; i++) {
            x[i] = add(_mm512_mask_mov_ps(a[i], 0xff00, a[i + 8]), _mm512_shuffle_f32x4(a[i], a[i + 8], 0x4e));
        }
        return sum_halves(x);
    }
    // The same for 8 registers; every sum stands in lanes i and i + 8.
    static Reg sum_lanes(const Reg (&a)[8]) {
        Reg x = sum_halves(a);
        return add(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    }
    static float sum(Reg a) {
        __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        y = _mm_add_ps(y, _mm_movehl_ps(y, y));
        return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
    }

    using Ints = __m512i;  // 2 W of int16
    static Ints load_ints(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
    static Ints no_ints() { return _mm512_setzero_si512(); }
    static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
    static Reg low_half(Ints a) { return widen(_mm512_castsi512_si256(a)); }
    static Reg high_half(Ints a) { return widen(_mm512_extracti64x4_epi64(a, 1)); }

  private:
    static __mmask16 mask(int n) { return __mmask16((1u << n) - 1u); }
    static Reg widen(__m256i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(x)); }
    static Reg widen(__m128i x) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)); }
    static Reg sum_halves(const Reg (&a)[8]) {
        const __m512i by4 = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
        const __m512i by1 = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
        Reg x[4], y[2];
        for (int i = 0; i < 4; i++) {
            x[i] = add(_mm512_mask_mov_ps(a[i], 0xf0f0, a[i + 4]), _mm512_permutex2var_ps(a[i], by4, a[i + 4]));
        }
        for (int i = 0; i < 2; i++) {
            y[i] = add(_mm512_mask_mov_ps(x[i], 0xcccc, x[i + 2]), _mm512_shuffle_ps(x[i], x[i + 2], 0x4e));
        }
        return add(_mm512_mask_mov_ps(y[0], 0xaaaa, y[1]), _mm512_permutex2var_ps(y[0], by1, y[1]));
    }
};

}  // namespace
