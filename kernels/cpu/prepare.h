// Mentions packed for the passes, each once: what is chosen from a batch points into its memory.
#pragma once

#include <memory>
#include <vector>

#include "types.h"

namespace mimic {

// Folded mentions as they come, float32 and row-major; nullptr where a unit is off.
struct MentionInputs {
    int count = 0, tokens = 0, text_width = 0;  // B, L, T
    const float* text_cls = nullptr;            // (B, T)
    const float* tglu_key = nullptr;            // (B, L, D)
    const float* tglu_value = nullptr;          // (B, L, D)
    const float* tglu_key_mask = nullptr;       // (B, L) or absent
    const float* vdlu_query = nullptr;          // (B, 3, D)
    const float* vdlu_key = nullptr;            // (B, 3, D)
    const float* vdlu_query_scalars = nullptr;  // (B, 7)
    const float* vdlu_key_scalars = nullptr;    // (B, 7)
    const float* concat = nullptr;              // (B, D)
    const float* cmfu = nullptr;                // (B, D)
};

// Zeroed, 64-byte aligned floats that live as long as the arena.
class Arena {
  public:
    float* floats(size_t count);

  private:
    struct Free {
        void operator()(void* p) const;
    };
    std::vector<std::unique_ptr<float, Free>> blocks_;
};

class Prepared {
  public:
    Prepared(const Kernels& kernels, const Constants& constants, const MentionInputs& inputs, int sweeps);
    // Mentions of another batch, which must live as long as this one.
    Prepared(const Prepared& whole, const std::vector<int>& chosen);
    Prepared(const Prepared&) = delete;
    Prepared& operator=(const Prepared&) = delete;

    // Adds the tables of the estimates: (C, D) centroids, float32.
    void add_tables(const float* centroids, int count);
    size_t scratch_bytes(int entity_tokens) const;

    const Kernels& kernels;
    Batch batch;
    int centroids = 0;  // C, 0 without tables

  private:
    void pack_attention(const MentionInputs& inputs, int b, Mention& mention);
    void pack_keys(const std::vector<const float*>& keys, Mention& mention);
    void quantise_table(const std::vector<float>& table, int count, Mention& mention);

    Arena arena_;
    std::vector<Mention> mentions_;
};

// The cone of `tokens` centred value rows (tokens, align16(width)); see cone.cpp.
Cone make_cone(Arena& arena, const float* values, int tokens, int width, int token_block);

}  // namespace mimic
