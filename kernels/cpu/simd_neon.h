// Registers of 4 floats: NEON of 64-bit ARM, which has fused multiply-add and half-precision conversion.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
    using Reg = float32x4_t;
    static constexpr int W = 4;
    static constexpr int kAccumulators = 24;
    static constexpr int kDots = 16;  // inner products at a time
    static constexpr int kTokenBlock = 8;

    static Reg load(const float* p) { return vld1q_f32(p); }
    static Reg load(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static Reg load(const int8_t* p) {
        int8_t eight[8] = {};
        std::memcpy(eight, p, W);
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(eight)))));
    }
    template <class T>
    static Reg load(const T* p, int n) {
        T padded[W] = {};
        std::memcpy(padded, p, n * sizeof(T));
        return load(padded);
    }
    static void store(float* p, Reg x) { vst1q_f32(p, x); }
    static Reg zero() { return vdupq_n_f32(0); }
    static Reg set1(float x) { return vdupq_n_f32(x); }
    static Reg set_pair(const float* p) {  // p[0], p[1], p[0], p[1]
        const float32x2_t pair = vld1_f32(p);
        return vcombine_f32(pair, pair);
    }
    static Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
    static Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
    static Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
    static Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
    static Reg sqrt(Reg a) { return vsqrtq_f32(a); }
    static Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
    static Reg max(Reg a, Reg b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b where either is NaN
    static Reg min(Reg a, Reg b) { return vbslq_f32(vcltq_f32(a, b), a, b); }  // b where either is NaN
    static Reg max_abs(Reg a, Reg b) { return max(a, vabsq_f32(b)); }
    static bool any_above(Reg a, float limit) { return vmaxvq_u32(vcgtq_f32(a, set1(limit))) != 0; }
    static Reg below_or(Reg a, float limit, Reg yes, Reg no) {  // a < limit ? yes : no
        return vbslq_f32(vcltq_f32(a, set1(limit)), yes, no);
    }
    static Reg scale_by_power(Reg p, Reg biased) {  // p * 2^n, n in the low bits of `biased`
        const int32x4_t e = vshlq_n_s32(vreinterpretq_s32_f32(biased), 23);
        return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), e));
    }
    static void add_tail(Reg tail, Reg& even, Reg& odd) {
        even = vaddq_f32(even, vtrn1q_f32(tail, zero()));
        odd = vaddq_f32(odd, vtrn2q_f32(zero(), tail));
    }
    static void interleave(Reg a, Reg b, Reg& low, Reg& high) {  // a0 b0 a1 b1 ...
        low = vzip1q_f32(a, b);
        high = vzip2q_f32(a, b);
    }
    // Rows of W floats become columns.
    static void transpose(Reg (&a)[4]) {
        const Reg x0 = vzip1q_f32(a[0], a[2]), x1 = vzip2q_f32(a[0], a[2]);
        const Reg y0 = vzip1q_f32(a[1], a[3]), y1 = vzip2q_f32(a[1], a[3]);
        a[0] = vzip1q_f32(x0, y0);
        a[1] = vzip2q_f32(x0, y0);
        a[2] = vzip1q_f32(x1, y1);
        a[3] = vzip2q_f32(x1, y1);
    }
    // Lane i: the sum of all lanes of a[i], added in the same tree whatever i.
    static Reg sum_lanes(const Reg (&a)[4]) { return vpaddq_f32(vpaddq_f32(a[0], a[1]), vpaddq_f32(a[2], a[3])); }
    static float sum(Reg a) { return vaddvq_f32(a); }

    using Ints = int16x8_t;  // 2 W of int16
    static Ints load_ints(const int8_t* p) { return vmovl_s8(vld1_s8(p)); }
    static Ints no_ints() { return vdupq_n_s16(0); }
    static Ints add_ints(Ints a, Ints b) { return vaddq_s16(a, b); }
    static Reg low_half(Ints a) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))); }
    static Reg high_half(Ints a) { return vcvtq_f32_s32(vmovl_high_s16(a)); }
};

}  // namespace
