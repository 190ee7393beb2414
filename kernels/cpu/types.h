// What the passes read and write: plain structs of pointers, shared by the translation units of all
// instruction sets. No templates of the standard library here, and functions are always inlined: one that was
// compiled for AVX-512 must never be the copy that the linker keeps for everybody.
//
// Axes: B mentions, N entities, L tokens, D width of the interaction, T width of the global text vector.
#pragma once

#include <cstddef>
#include <cstdint>

#define MIMIC_INLINE inline __attribute__((always_inline))

namespace mimic {

enum class Dtype { f32, f16, i8 };

// A row-major stored array, one row an entity; data == nullptr where its unit is off.
struct Stored {
    const void* data = nullptr;
    Dtype dtype = Dtype::f32;
};

// The folded entities of one segment, as they lie in memory (mimic_engine/types.py, EntityArrays).
struct Segment {
    int64_t rows = 0;
    int tokens = 0;                             // L of the entity side
    Stored text_cls;                            // (N, T)
    Stored tglu_query;                          // (N, L, D)
    Stored tglu_cls;                            // (N, D)
    Stored vdlu_query, vdlu_key;                // (N, 3, D)
    Stored concat, cmfu;                        // (N, D)
    const float* tglu_query_scale = nullptr;    // (N, L), with int8 queries
    const float* tglu_token_weight = nullptr;   // (N, L) or absent
    const float* tglu_bias = nullptr;           // (N,)
    const float* vdlu_query_scalars = nullptr;  // (N, 7)
    const float* vdlu_key_scalars = nullptr;    // (N, 7)
};

// The cone bound of one mention; see cone.cpp for the proof of its slack.
struct Cone {
    bool pointed = false;
    int blocks = 0;                 // of token_block attended tokens, padded with zeros
    const float* steps = nullptr;   // a block: D x token_block directions, then (all tokens) x token_block of -G
    const float* axis = nullptr;    // z_j . a
    const float* inverse = nullptr; // 1 / (z_j . a), rounded up; 0 for padding
    float residual_slack = 0;       // error of a residual, in units of |u| + sum x
    float sum_slack = 0;            // relative error of a sum over tokens
    float direction_slack = 0;      // error of the context's direction, in units of |u|
    float cone_scale = 0;           // sqrt(D), rounded up by the relative errors of both sides
    float norm_scale = 0;           // the same for the Cauchy-Schwarz bound; NaN for a mention that is not finite
};

// One mention, packed for the lanes of an instruction set. Vectors are padded with zeros to `align(D)`.
struct Mention {
    int tokens = 0;                // attended tokens: masked ones are dropped
    const float* key = nullptr;    // (D, columns): log2(e) * centred keys, transposed; see `columns`
    const float* live = nullptr;   // (columns,) 1 = a token, 0 = padding
    bool padded = false;           // some column is padding
    const float* value = nullptr;  // (tokens, align(D))
    const int8_t* table = nullptr;       // (C, align32(D)): contexts of the centroids, for the estimates
    const float* table_scale = nullptr;  // (align32(D),): one step of each column
    const float* text_cls = nullptr;
    const float* vdlu_query = nullptr;  // (3, align(D))
    const float* vdlu_key = nullptr;    // (3, align(D))
    const float* concat = nullptr;
    const float* cmfu = nullptr;
    float vdlu_query_scalars[7] = {};
    float vdlu_key_scalars[7] = {};
    Cone cone;
};

struct Constants {
    int width = 0;  // D
    float eps = 0;
    float gate_bias[2] = {};
    float bias_norm[2] = {};
    bool tglu = false, vdlu = false, concat = false, cmfu = false;
    MIMIC_INLINE int units() const { return int(tglu) + int(vdlu) + int(concat) + int(cmfu); }
};

struct Batch {
    Constants constants;
    int text_width = 0;  // T
    int count = 0;       // B
    int sweeps = 1;      // Gauss-Seidel sweeps of the bound
    int max_columns = 0; // largest packed number of columns
    int max_blocks = 0;
    const Mention* mentions = nullptr;
};

// Rows of a segment: start, start + 1, ... or the given numbers.
struct Rows {
    int64_t start = 0;
    const int64_t* numbers = nullptr;
    int64_t count = 0;
    MIMIC_INLINE int64_t operator[](int64_t i) const { return numbers ? numbers[i] : start + i; }
    MIMIC_INLINE Rows from(int64_t i) const { return {start + i, numbers ? numbers + i : nullptr, count - i}; }
};

struct Codes {
    const void* data = nullptr;  // (N, L) uint8 or uint16
    bool wide = false;
};

// (B, n) row-major outputs with their strides in floats; units may be absent.
struct Out {
    float* total = nullptr;
    int64_t stride = 0;
    float *tglu = nullptr, *vdlu = nullptr, *concat = nullptr, *cmfu = nullptr;  // stride n
    int64_t unit_stride = 0;
};

// Working memory of one call: handed out front to back, 64-byte aligned.
struct Scratch {
    char* next = nullptr;
    size_t left = 0;
    MIMIC_INLINE float* floats(int64_t count) {
        size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
        if (bytes > left) __builtin_trap();  // Prepared::scratch_bytes is wrong
        float* out = reinterpret_cast<float*>(next);
        next += bytes;
        left -= bytes;
        return out;
    }
};

constexpr int kGroup = 64;       // entities that are worked on together
constexpr int kRows = 16;        // of these, whose widened vectors lie in the first-level cache together
constexpr int kMentions = 16;    // mentions whose keys and values stay in the second-level cache
constexpr int kMaxTokens = 128;  // of either side
constexpr int kTableLimit = 127;  // so that the sum of kMaxTokens table rows fits in int16
constexpr float kLog2e = 1.44269504088896341f;

MIMIC_INLINE int align16(int width) { return (width + 15) / 16 * 16; }
MIMIC_INLINE int align32(int width) { return (width + 31) / 32 * 32; }

// One instruction set: the layout it wants, and the passes.
struct Kernels {
    const char* name;
    int lanes;        // floats a register
    int token_block;  // tokens that the bound sweeps in registers
    void (*totals)(const Batch&, const Segment&, const Rows&, const Out&, Scratch);
    void (*bounds)(const Batch&, const Segment&, const Rows&, const Out&, Scratch);
    void (*estimates)(const Batch&, const Segment&, const Codes&, const Rows&, const Out&, Scratch);
    void (*table)(const Batch&, const Mention&, const float* centroids, int count, float* out, Scratch);
};

// Columns of the packed keys: pairs of 8-token chunks fill registers of 16 lanes; an odd chunk is stored
// with every column twice, so that one register serves two entity rows (attention.inc).
struct Columns {
    int full;   // registers of their own
    bool tail;  // a shared register
    MIMIC_INLINE int count(int lanes) const { return (full + int(tail)) * lanes; }
};

MIMIC_INLINE Columns columns(int tokens, int lanes) {
    int chunks = (tokens + 7) / 8;
    if (lanes == 16) return {chunks / 2, chunks % 2 == 1};
    return {chunks * (8 / lanes), false};
}

const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* portable_kernels();

}  // namespace mimic
