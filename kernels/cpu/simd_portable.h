// Registers of 4 floats in the vector extension of GCC and Clang: any machine, no fused multiply-add assumed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Simd {
    typedef float Reg __attribute__((vector_size(16)));
    typedef int32_t Bits __attribute__((vector_size(16)));
    static constexpr int W = 4;
    static constexpr int kAccumulators = 12;
    static constexpr int kDots = 8;  // inner products at a time
    static constexpr int kTokenBlock = 4;

    static Reg load(const float* p) {
        Reg x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static Reg load(const uint16_t* p) { return Reg{half(p[0]), half(p[1]), half(p[2]), half(p[3])}; }
    static Reg load(const int8_t* p) { return Reg{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }
    template <class T>
    static Reg load(const T* p, int n) {
        T padded[W] = {};
        std::memcpy(padded, p, n * sizeof(T));
        return load(padded);
    }
    static void store(float* p, Reg x) { std::memcpy(p, &x, sizeof x); }
    static Reg zero() { return Reg{}; }
    static Reg set1(float x) { return Reg{x, x, x, x}; }
    static Reg set_pair(const float* p) { return Reg{p[0], p[1], p[0], p[1]}; }
    static Reg add(Reg a, Reg b) { return a + b; }
    static Reg sub(Reg a, Reg b) { return a - b; }
    static Reg mul(Reg a, Reg b) { return a * b; }
    static Reg div(Reg a, Reg b) { return a / b; }
    static Reg sqrt(Reg a) {
        return Reg{std::sqrt(a[0]), std::sqrt(a[1]), std::sqrt(a[2]), std::sqrt(a[3])};
    }
    static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
    static Reg max(Reg a, Reg b) { return select(a > b, a, b); }  // b where either is NaN
    static Reg min(Reg a, Reg b) { return select(a < b, a, b); }  // b where either is NaN
    static Reg max_abs(Reg a, Reg b) { return max(a, (Reg)((Bits)b & 0x7fffffff)); }
    static bool any_above(Reg a, float limit) {
        Bits m = a > set1(limit);
        return (m[0] | m[1] | m[2] | m[3]) != 0;
    }
    static Reg below_or(Reg a, float limit, Reg yes, Reg no) {  // a < limit ? yes : no
        return select(a < set1(limit), yes, no);
    }
    static Reg scale_by_power(Reg p, Reg biased) {  // p * 2^n, n in the low bits of `biased`
        return (Reg)((Bits)p + ((Bits)biased << 23));
    }
    static void add_tail(Reg tail, Reg& even, Reg& odd) {
        even += Reg{tail[0], 0, tail[2], 0};
        odd += Reg{0, tail[1], 0, tail[3]};
    }
    static void interleave(Reg a, Reg b, Reg& low, Reg& high) {  // a0 b0 a1 b1 ...
        low = Reg{a[0], b[0], a[1], b[1]};
        high = Reg{a[2], b[2], a[3], b[3]};
    }
    // Rows of W floats become columns.
    static void transpose(Reg (&a)[4]) {
        Reg b[4];
        for (int i = 0; i < 4; i++) b[i] = Reg{a[0][i], a[1][i], a[2][i], a[3][i]};
        for (int i = 0; i < 4; i++) a[i] = b[i];
    }
    // Lane i: the sum of all lanes of a[i], added in the same tree whatever i.
    static Reg sum_lanes(const Reg (&a)[4]) { return Reg{sum(a[0]), sum(a[1]), sum(a[2]), sum(a[3])}; }
    static float sum(Reg a) { return (a[0] + a[2]) + (a[1] + a[3]); }

    typedef int16_t Ints __attribute__((vector_size(16)));  // 2 W of int16
    static Ints load_ints(const int8_t* p) { return Ints{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]}; }
    static Ints no_ints() { return Ints{}; }
    static Ints add_ints(Ints a, Ints b) { return a + b; }
    static Reg low_half(Ints a) { return Reg{float(a[0]), float(a[1]), float(a[2]), float(a[3])}; }
    static Reg high_half(Ints a) { return Reg{float(a[4]), float(a[5]), float(a[6]), float(a[7])}; }

  private:
    static Reg select(Bits m, Reg yes, Reg no) { return (Reg)((m & (Bits)yes) | (~m & (Bits)no)); }
    // Exact; infinities and NaN stay what they are.
    static float half(uint16_t h) {
        uint32_t rest = uint32_t(h & 0x7fff) << 13;
        float x;
        std::memcpy(&x, &rest, sizeof x);
        x *= 0x1p112f;  // mends the exponent's bias and subnormals alike
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        if ((h & 0x7c00) == 0x7c00) bits = 0x7f800000u | rest;
        bits |= uint32_t(h & 0x8000) << 16;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    }
};

}  // namespace
