// Posting lists are read rarest first; a list that cannot lift a form over a threshold alone is not read.
#include "names.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace mimic {

namespace {

struct Form {
    uint32_t number;
    double words, context, chars;
};

struct List {
    const uint32_t* begin;
    const uint32_t* end;
    int64_t size() const { return end - begin; }
};

[[noreturn]] void outside(const char* array) {
    throw std::invalid_argument(std::string(array) + ": an entry points outside");
}

// Number of a key among ascending keys; -1 where it is not there.
int64_t number_of(const uint64_t* keys, int64_t count, uint64_t key) {
    const uint64_t* at = std::lower_bound(keys, keys + count, key);
    return at != keys + count && *at == key ? at - keys : -1;
}

List list_of(const uint64_t* offset, const uint32_t* posting, int64_t entries, int64_t number, const char* array) {
    const uint64_t begin = offset[number], end = offset[number + 1];
    if (begin > end || end > uint64_t(entries)) outside(array);
    return {posting + begin, posting + end};
}

// Numbers that the segment gives to hashes it knows, ascending.
std::vector<uint32_t> numbers_of(const NameForms& f, const std::vector<uint64_t>& hashes) {
    std::vector<uint32_t> out;
    for (const uint64_t hash : hashes) {
        const int64_t number = number_of(f.word_hash, f.words, hash);
        if (number >= 0) out.push_back(uint32_t(number));
    }
    std::sort(out.begin(), out.end());
    return out;
}

// How often each form was met; kept by a thread, all zero between two lookups.
class Counts {
  public:
    void fit(int64_t forms) {
        if (int64_t(counts_.size()) < forms) counts_.resize(forms);
    }
    void add(List list, int64_t forms, const char* array) {
        for (const uint32_t* at = list.begin; at != list.end; at++) {
            if (*at >= forms) outside(array);
            if (!counts_[*at]++) met_.push_back(*at);
        }
    }
    void add_to_met(List list, int64_t forms, const char* array) {
        for (const uint32_t* at = list.begin; at != list.end; at++) {
            if (*at >= forms) outside(array);
            if (counts_[*at]) counts_[*at]++;
        }
    }
    uint16_t& operator[](uint32_t form) { return counts_[form]; }
    std::vector<uint32_t>& met() { return met_; }
    void clear() {
        for (const uint32_t form : met_) counts_[form] = 0;
        met_.clear();
    }

  private:
    std::vector<uint16_t> counts_;
    std::vector<uint32_t> met_;
};

thread_local Counts counts;

struct ClearedAtEnd {
    ~ClearedAtEnd() { counts.clear(); }
};

// Cosine and context of one form.
bool by_words(const NameForms& f, const NameQuery& q, const std::vector<uint32_t>& ours,
              const std::vector<uint32_t>& around, Form* form) {
    const uint64_t begin = f.word_offset[form->number], end = f.word_offset[form->number + 1];
    if (begin > end || end > uint64_t(f.entries)) outside("word_offset");
    double shared = 0, all = 0, rest = 0, said = 0;
    for (uint64_t i = begin; i < end; i++) {
        const uint32_t word = f.form_word[i];
        if (int64_t(word) >= f.words) outside("form_word");
        const double weight = f.idf[word], square = weight * weight;
        all += square;
        if (std::binary_search(ours.begin(), ours.end(), word)) {
            shared += square;
        } else {
            rest += weight;
            if (std::binary_search(around.begin(), around.end(), word)) said += weight;
        }
    }
    const double cosine = std::min(1.0, shared / (std::sqrt(all) * q.norm));
    if (!(cosine >= q.least_words)) return false;
    form->words = cosine;
    form->context = rest > 0 ? std::min(1.0, said / rest) : 0;
    return true;
}

std::vector<Form> sharing_words(const NameForms& f, const NameQuery& q) {
    std::vector<size_t> order(q.words.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return q.squares[a] > q.squares[b]; });
    double left = 0;
    for (const double square : q.squares) left += square;
    const ClearedAtEnd cleared;
    for (const size_t i : order) {  // the weightiest first, until what is left allows no cosine over the threshold
        if (std::sqrt(std::max(0.0, left)) / q.norm < q.least_words * (1 - 1e-9)) break;
        left -= q.squares[i];
        const int64_t number = number_of(f.word_hash, f.words, q.words[i]);
        if (number < 0) continue;
        counts.add(list_of(f.posting_offset, f.posting, f.entries, number, "posting_offset"), f.forms, "posting");
    }
    std::sort(counts.met().begin(), counts.met().end());
    const std::vector<uint32_t> ours = numbers_of(f, q.words), around = numbers_of(f, q.context);
    std::vector<Form> out;
    for (const uint32_t number : counts.met()) {
        Form form{number, 0, 0, 0};
        if (by_words(f, q, ours, around, &form)) out.push_back(form);
    }
    return out;
}

std::vector<Form> sharing_chars(const NameForms& f, const NameQuery& q) {
    const int64_t ours = int64_t(q.grams.size());
    // A form over the threshold shares at least this many of them.
    const int64_t least = int64_t(std::ceil(double(ours) * q.least_chars / (2 - q.least_chars) - 1e-9));
    if (ours == 0 || least > f.most_grams) return {};
    std::vector<List> lists;
    for (const uint64_t code : q.grams) {
        const int64_t number = number_of(f.gram_code, f.grams, code);
        if (number < 0) continue;
        lists.push_back(list_of(f.gram_offset, f.gram_posting, f.gram_entries, number, "gram_offset"));
    }
    if (int64_t(lists.size()) < least) return {};
    std::sort(lists.begin(), lists.end(), [](const List& a, const List& b) { return a.size() < b.size(); });
    const size_t read = size_t(int64_t(lists.size()) - least + 1);
    const ClearedAtEnd cleared;
    for (size_t i = 0; i < read; i++) counts.add(lists[i], f.forms, "gram_posting");
    std::vector<uint32_t> open;
    for (const uint32_t form : counts.met()) {
        const double most = 2.0 * double(counts[form] + (lists.size() - read));
        if (most >= q.least_chars * double(ours + f.gram_count[form]) - 1e-9) open.push_back(form);
    }
    for (size_t i = read; i < lists.size(); i++) {
        if (lists[i].size() < int64_t(open.size()) * 16) {
            counts.add_to_met(lists[i], f.forms, "gram_posting");
        } else {
            for (const uint32_t form : open) counts[form] += std::binary_search(lists[i].begin, lists[i].end, form);
        }
    }
    std::sort(open.begin(), open.end());
    std::vector<Form> out;
    for (const uint32_t form : open) {
        const double dice = 2.0 * counts[form] / double(ours + f.gram_count[form]);
        if (dice >= q.least_chars) out.push_back({form, 0, 0, dice});
    }
    return out;
}

// Both lists as one, ascending by form.
std::vector<Form> merged(const std::vector<Form>& a, const std::vector<Form>& b) {
    std::vector<Form> out;
    size_t i = 0, j = 0;
    while (i < a.size() || j < b.size()) {
        if (j == b.size() || (i < a.size() && a[i].number < b[j].number)) {
            out.push_back(a[i++]);
        } else if (i == a.size() || b[j].number < a[i].number) {
            out.push_back(b[j++]);
        } else {
            out.push_back({a[i].number, a[i].words, a[i].context, b[j].chars});
            i++, j++;
        }
    }
    return out;
}

}  // namespace

NameFound look_up(const NameForms& f, const NameQuery& q) {
    counts.fit(f.forms);
    NameFound out;
    const std::vector<Form> words = sharing_words(f, q);
    for (const Form& form : merged(words, sharing_chars(f, q))) {
        const int64_t row = f.form_row[form.number];
        if (row >= f.rows) outside("form_row");
        if (f.alive && !f.alive[row]) continue;
        if (out.rows.empty() || out.rows.back() != row) {
            if (!out.rows.empty() && out.rows.back() > row) outside("form_row");
            out.rows.push_back(row);
            for (auto* values : {&out.exact, &out.words, &out.chars, &out.context}) values->push_back(0);
        }
        const auto raise = [](std::vector<float>& values, double value) {
            values.back() = std::max(values.back(), float(value));
        };
        raise(out.exact, std::binary_search(q.equal.begin(), q.equal.end(), form.number) ? 1.0 : 0.0);
        raise(out.words, form.words);
        raise(out.chars, form.chars);
        raise(out.context, form.context);
    }
    return out;
}

}  // namespace mimic
