// Packs folded mentions for the lanes of an instruction set, once a batch.
#include "prepare.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace mimic {

float* Arena::floats(size_t count) {
    const size_t bytes = (count * sizeof(float) + 63) / 64 * 64 + 64;  // room for a register past the end
    void* p = std::aligned_alloc(64, bytes);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, bytes);
    blocks_.emplace_back(static_cast<float*>(p));
    return blocks_.back().get();
}

void Arena::Free::operator()(void* p) const { std::free(p); }

namespace {

// `parts` rows of `width` floats, each padded with zeros.
const float* padded_rows(Arena& arena, const float* rows, int parts, int width) {
    const int padded = align16(width);
    float* out = arena.floats(size_t(parts) * padded);
    for (int i = 0; i < parts; i++) std::memcpy(out + i * padded, rows + i * width, width * sizeof(float));
    return out;
}

std::vector<int> attended_tokens(const float* mask, int tokens) {
    std::vector<int> out;
    for (int j = 0; j < tokens; j++) {
        if (!mask || mask[j] > 0) out.push_back(j);
    }
    return out;
}

bool all_finite(const float* values, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!std::isfinite(values[i])) return false;
    }
    return true;
}

}  // namespace

Prepared::Prepared(const Kernels& k, const Constants& c, const MentionInputs& in, int sweeps) : kernels(k) {
    batch.constants = c;
    batch.text_width = in.text_width;
    batch.count = in.count;
    batch.sweeps = sweeps;
    mentions_.resize(in.count);
    const int64_t d = c.width;
    for (int64_t b = 0; b < in.count; b++) {
        Mention& m = mentions_[b];
        if (c.tglu) {
            m.text_cls = padded_rows(arena_, in.text_cls + b * in.text_width, 1, in.text_width);
            pack_attention(in, int(b), m);
        }
        if (c.vdlu) {
            m.vdlu_query = padded_rows(arena_, in.vdlu_query + b * 3 * d, 3, c.width);
            m.vdlu_key = padded_rows(arena_, in.vdlu_key + b * 3 * d, 3, c.width);
            std::memcpy(m.vdlu_query_scalars, in.vdlu_query_scalars + b * 7, sizeof m.vdlu_query_scalars);
            std::memcpy(m.vdlu_key_scalars, in.vdlu_key_scalars + b * 7, sizeof m.vdlu_key_scalars);
        }
        if (c.concat) m.concat = padded_rows(arena_, in.concat + b * d, 1, c.width);
        if (c.cmfu) m.cmfu = padded_rows(arena_, in.cmfu + b * d, 1, c.width);
    }
    batch.mentions = mentions_.data();
}

Prepared::Prepared(const Prepared& whole, const std::vector<int>& chosen)
    : kernels(whole.kernels), batch(whole.batch), centroids(whole.centroids) {
    for (int b : chosen) mentions_.push_back(whole.mentions_[b]);
    batch.count = int(chosen.size());
    batch.mentions = mentions_.data();
}

void Prepared::pack_attention(const MentionInputs& in, int b, Mention& m) {
    const int width = batch.constants.width, padded = align16(width);
    const float* mask = in.tglu_key_mask ? in.tglu_key_mask + int64_t(b) * in.tokens : nullptr;
    std::vector<const float*> keys, values;  // of the attended tokens
    for (int64_t j : attended_tokens(mask, in.tokens)) {
        keys.push_back(in.tglu_key + (int64_t(b) * in.tokens + j) * width);
        values.push_back(in.tglu_value + (int64_t(b) * in.tokens + j) * width);
    }
    m.tokens = int(keys.size());
    float* value = arena_.floats(size_t(m.tokens) * padded);
    bool finite = m.tokens > 0;
    for (int j = 0; j < m.tokens; j++) {
        std::memcpy(value + size_t(j) * padded, values[j], width * sizeof(float));
        finite = finite && all_finite(values[j], width) && all_finite(keys[j], width);
    }
    m.value = value;
    pack_keys(keys, m);
    m.cone = make_cone(arena_, value, finite ? m.tokens : 0, width, kernels.token_block);
    if (!finite) m.cone.norm_scale = std::numeric_limits<float>::quiet_NaN();
    batch.max_blocks = std::max(batch.max_blocks, m.cone.blocks);
}

// Keys centred over the tokens and in units of log2, transposed; see `columns` for their order.
void Prepared::pack_keys(const std::vector<const float*>& keys, Mention& m) {
    const int width = batch.constants.width;
    const Columns layout = columns(m.tokens, kernels.lanes);
    const int count = layout.count(kernels.lanes), full = layout.full * kernels.lanes;
    float* key = arena_.floats(size_t(width) * count);
    float* live = arena_.floats(count);
    for (int d = 0; d < width; d++) {
        double mean = 0;
        for (const float* token : keys) mean += token[d];
        mean /= m.tokens;
        for (int j = 0; j < m.tokens; j++) {
            const int copies = j < full ? 1 : 2, column = j < full ? j : full + 2 * (j - full);
            for (int i = column; i < column + copies; i++) {
                key[size_t(d) * count + i] = float((keys[j][d] - mean) * double(kLog2e));
                live[i] = 1.0f;
            }
        }
    }
    m.key = key;
    m.live = live;
    m.padded = full + (layout.tail ? 8 : 0) != m.tokens;
    batch.max_columns = std::max(batch.max_columns, count);
}

void Prepared::add_tables(const float* values, int count) {
    const int padded = align16(batch.constants.width);
    std::vector<char> memory(scratch_bytes(8) + 64);
    const size_t skip = (64 - reinterpret_cast<size_t>(memory.data()) % 64) % 64;
    const Scratch scratch{memory.data() + skip, memory.size() - skip};
    std::vector<float> table(size_t(count) * padded);
    for (Mention& m : mentions_) {
        if (m.tokens > 0) kernels.table(batch, m, values, count, table.data(), scratch);
        quantise_table(table, count, m);
    }
    centroids = count;
}

void Prepared::quantise_table(const std::vector<float>& table, int count, Mention& m) {
    const int padded = align16(batch.constants.width), stride = align32(batch.constants.width);
    float* scale = arena_.floats(stride);
    int8_t* out = reinterpret_cast<int8_t*>(arena_.floats(size_t(count) * stride / 4));
    m.table = out;
    m.table_scale = scale;
    std::fill(scale, scale + stride, std::numeric_limits<float>::min() * kTableLimit);
    for (int c = 0; c < count; c++) {
        for (int d = 0; d < padded; d++) {
            const float size = std::fabs(table[size_t(c) * padded + d]);
            scale[d] = size <= scale[d] ? scale[d] : size;  // NaN too
        }
    }
    std::vector<float> inverse(padded);
    for (int d = 0; d < padded; d++) {
        scale[d] /= kTableLimit;
        inverse[d] = 1.0f / scale[d];
    }
    if (m.tokens == 0 || !all_finite(table.data(), table.size())) {
        std::fill(scale, scale + stride, std::numeric_limits<float>::quiet_NaN());
        return;
    }
    for (int c = 0; c < count; c++) {
        for (int d = 0; d < padded; d++) {
            out[size_t(c) * stride + d] = int8_t(std::nearbyint(table[size_t(c) * padded + d] * inverse[d]));
        }
    }
}

size_t Prepared::scratch_bytes(int entity_tokens) const {
    const size_t padded = align16(batch.constants.width) + 16, text = align16(batch.text_width) + 16, group = kGroup;
    size_t floats = group * std::max(3 * padded, text);                                 // stored rows
    floats += 11 * size_t(kMentions) * group + 16 * group;                              // dots, units, scalars
    floats += (size_t(entity_tokens) + 3) * padded + entity_tokens;                     // queries, weights
    floats += 8 * kMaxTokens;                                                           // attention of centroids
    floats += (size_t(kMentions) + 1) * group * batch.max_columns;                      // column means
    floats += 3 * group * padded + group;                                               // vectors, columns
    floats += (3 * size_t(batch.max_blocks) + 1) * size_t(kernels.token_block) * group;  // t, x, y
    floats += group * (2 * kMaxTokens + 2);                                             // tokens of the codes
    return (floats + 64 * 16) * sizeof(float);                                          // and alignment
}

}  // namespace mimic
