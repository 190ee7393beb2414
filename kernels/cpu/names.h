// Lookup of the name features of one segment; the definition is mimic_engine/names/features.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mimic {

// Arrays of mimic_engine/names/forms.py; `alive` (rows of the segment) or nullptr where all are.
struct NameForms {
    int64_t forms = 0, rows = 0, words = 0, grams = 0, entries = 0, gram_entries = 0;
    int64_t most_grams = 0;  // of a form
    const uint32_t* form_row = nullptr;
    const uint64_t* word_offset = nullptr;
    const uint32_t* form_word = nullptr;
    const uint64_t* word_hash = nullptr;
    const uint64_t* posting_offset = nullptr;
    const uint32_t* posting = nullptr;
    const uint16_t* gram_count = nullptr;
    const uint64_t* gram_code = nullptr;
    const uint64_t* gram_offset = nullptr;
    const uint32_t* gram_posting = nullptr;
    const uint8_t* alive = nullptr;
    const double* idf = nullptr;  // of every word, by its number
};

struct NameQuery {
    std::vector<uint64_t> words;     // hashes in their order, and the squares of their weights
    std::vector<double> squares;
    double norm = 0;                 // of the surface: sqrt of the sum of the squares
    std::vector<uint64_t> context;   // hashes of the text's words
    std::vector<uint64_t> grams;     // codes, each once
    std::vector<uint32_t> equal;     // forms that are the surface, ascending
    double least_words = 0, least_chars = 0;
};

struct NameFound {
    std::vector<int64_t> rows;  // of the segment, ascending
    std::vector<float> exact, words, chars, context;
};

// Throws std::invalid_argument if an entry points outside its array.
NameFound look_up(const NameForms& forms, const NameQuery& query);

}  // namespace mimic
