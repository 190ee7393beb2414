// The Python module `_cpu`: checks what it is given, releases the interpreter lock, calls the passes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "names.h"
#include "prepare.h"

namespace nb = nanobind;

namespace mimic {

namespace {

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;

std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> out;
#if defined(MIMIC_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) out.push_back(avx512_kernels());
    if (avx2) out.push_back(avx2_kernels());
#elif defined(MIMIC_NEON)
    out.push_back(neon_kernels());  // part of every 64-bit ARM machine
#endif
    out.push_back(portable_kernels());
    return out;
}

const Kernels& kernels_named(const std::string& name) {
    for (const Kernels* k : supported()) {
        if (name == k->name) return *k;
    }
    throw nb::value_error(("isa: " + name + " does not run on this machine").c_str());
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string out = "(";
    for (size_t i = 0; i < shape.size(); i++) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + ")";
}

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

// An array by its name, checked: dtype, contiguity, shape.
struct Named {
    const void* data = nullptr;
    Dtype dtype = Dtype::f32;
    std::vector<int64_t> shape;
    const float* floats() const { return static_cast<const float*>(data); }
    Stored stored() const { return {data, dtype}; }
};

Dtype dtype_of(const std::string& name, const Input& array, bool float32_only) {
    const auto dtype = array.dtype();
    const auto is = [&](nb::dlpack::dtype_code code, int bits) {
        return dtype.code == uint8_t(code) && dtype.bits == bits && dtype.lanes == 1;
    };
    if (is(nb::dlpack::dtype_code::Float, 32)) return Dtype::f32;
    if (!float32_only && is(nb::dlpack::dtype_code::Float, 16)) return Dtype::f16;
    if (name == "tglu_query" && !float32_only && is(nb::dlpack::dtype_code::Int, 8)) return Dtype::i8;
    refuse(name + ": its dtype is none that these kernels read here");
}

bool contiguous(const Input& array) {
    int64_t step = 1;
    for (size_t i = array.ndim(); i-- > 0;) {
        if (array.shape(i) > 1 && array.stride(i) != step) return false;
        step *= int64_t(array.shape(i));
    }
    return true;
}

// `expected`: -1 = any length from 1 on.
Named take(const nb::dict& arrays, const char* name, std::initializer_list<int64_t> expected, bool float32_only) {
    if (!arrays.contains(name)) refuse(std::string(name) + ": missing, a unit that is on needs it");
    const auto array = nb::cast<Input>(arrays[name]);
    Named out{array.data(), dtype_of(name, array, float32_only), {}};
    for (size_t i = 0; i < array.ndim(); i++) out.shape.push_back(int64_t(array.shape(i)));
    bool fits = array.ndim() == expected.size();
    for (size_t i = 0; fits && i < array.ndim(); i++) {
        const int64_t want = expected.begin()[i];
        fits = want < 0 ? out.shape[i] >= 1 : out.shape[i] == want;
    }
    if (!fits) refuse(std::string(name) + ": shape " + shape_text(out.shape) + ", expected " + shape_text(expected));
    if (!contiguous(array)) refuse(std::string(name) + ": not contiguous");
    const size_t item = out.dtype == Dtype::f32 ? 4 : out.dtype == Dtype::f16 ? 2 : 1;
    if (reinterpret_cast<size_t>(out.data) % item) refuse(std::string(name) + ": not aligned to its items");
    return out;
}

int64_t rows_of(const nb::dict& arrays) {
    for (auto [name, value] : arrays) {
        const auto array = nb::cast<Input>(value);
        return array.ndim() ? int64_t(array.shape(0)) : 0;
    }
    return 0;
}

Constants constants_of(int width, const std::vector<std::string>& units, double eps, nb::tuple gate_bias,
                       nb::tuple bias_norm) {
    Constants c;
    if (width < 1) refuse("width: must be at least 1, got " + std::to_string(width));
    if (units.empty()) refuse("units: none is on");
    c.width = width;
    c.eps = float(eps);
    for (int i = 0; i < 2; i++) {
        c.gate_bias[i] = nb::cast<float>(gate_bias[i]);
        c.bias_norm[i] = nb::cast<float>(bias_norm[i]);
    }
    for (const std::string& unit : units) {
        bool* flag = unit == "tglu" ? &c.tglu : unit == "vdlu" ? &c.vdlu : unit == "concat" ? &c.concat
                   : unit == "cmfu" ? &c.cmfu : nullptr;
        if (!flag) refuse("units: " + unit + " is not one of tglu, vdlu, concat, cmfu");
        *flag = true;
    }
    return c;
}

void check_tokens(const char* name, int64_t tokens) {
    if (tokens > kMaxTokens) {
        refuse(std::string(name) + ": " + std::to_string(tokens) + " tokens, at most " + std::to_string(kMaxTokens));
    }
}

std::unique_ptr<Prepared> prepare(const std::string& isa, const Constants& c, const nb::dict& arrays, int sweeps,
                                  std::optional<Input> centroids) {
    MentionInputs in;
    const int64_t count = rows_of(arrays), d = c.width;
    in.count = int(count);
    if (sweeps < 1) refuse("sweeps: must be at least 1, got " + std::to_string(sweeps));
    const auto floats = [&](const char* name, std::initializer_list<int64_t> shape) {
        return take(arrays, name, shape, true).floats();
    };
    if (c.tglu) {
        const Named key = take(arrays, "tglu_key", {count, -1, d}, true);
        in.tglu_key = key.floats();
        in.tokens = int(key.shape[1]);
        check_tokens("tglu_key", in.tokens);
        in.tglu_value = floats("tglu_value", {count, in.tokens, d});
        if (arrays.contains("tglu_key_mask")) in.tglu_key_mask = floats("tglu_key_mask", {count, in.tokens});
        const Named cls = take(arrays, "text_cls", {count, -1}, true);
        in.text_cls = cls.floats();
        in.text_width = int(cls.shape[1]);
    }
    if (c.vdlu) {
        in.vdlu_query = floats("vdlu_query", {count, 3, d});
        in.vdlu_key = floats("vdlu_key", {count, 3, d});
        in.vdlu_query_scalars = floats("vdlu_query_scalars", {count, 7});
        in.vdlu_key_scalars = floats("vdlu_key_scalars", {count, 7});
    }
    if (c.concat) in.concat = floats("concat", {count, d});
    if (c.cmfu) in.cmfu = floats("cmfu", {count, d});
    Named table;
    if (centroids && c.tglu) {
        nb::dict named;
        named["centroids"] = nb::cast(*centroids);
        table = take(named, "centroids", {-1, d}, true);
        if (table.shape[0] > 65536) refuse("centroids: " + std::to_string(table.shape[0]) + " of them, at most 65536");
    }
    const Kernels& kernels = kernels_named(isa);
    nb::gil_scoped_release unlocked;
    auto out = std::make_unique<Prepared>(kernels, c, in, sweeps);
    if (table.data) out->add_tables(table.floats(), int(table.shape[0]));
    return out;
}

std::unique_ptr<Prepared> choose(const Prepared& whole, const std::vector<int>& chosen) {
    for (int b : chosen) {
        if (b < 0 || b >= whole.batch.count) {
            refuse("rows: number " + std::to_string(b) + " is not within " + std::to_string(whole.batch.count) +
                   " mentions");
        }
    }
    return std::make_unique<Prepared>(whole, chosen);
}

Segment segment_of(const Prepared& prepared, const nb::dict& arrays) {
    const Constants& c = prepared.batch.constants;
    Segment s;
    const int64_t n = s.rows = rows_of(arrays), d = c.width;
    const auto stored = [&](const char* name, std::initializer_list<int64_t> shape) {
        return take(arrays, name, shape, false).stored();
    };
    const auto floats = [&](const char* name, std::initializer_list<int64_t> shape) {
        return take(arrays, name, shape, true).floats();
    };
    if (c.tglu) {
        const Named query = take(arrays, "tglu_query", {n, -1, d}, false);
        s.tglu_query = query.stored();
        s.tokens = int(query.shape[1]);
        check_tokens("tglu_query", s.tokens);
        if (query.dtype == Dtype::i8) s.tglu_query_scale = floats("tglu_query_scale", {n, s.tokens});
        if (arrays.contains("tglu_token_weight")) s.tglu_token_weight = floats("tglu_token_weight", {n, s.tokens});
        s.tglu_cls = stored("tglu_cls", {n, d});
        s.tglu_bias = floats("tglu_bias", {n});
        s.text_cls = stored("text_cls", {n, prepared.batch.text_width});
    }
    if (c.vdlu) {
        s.vdlu_query = stored("vdlu_query", {n, 3, d});
        s.vdlu_key = stored("vdlu_key", {n, 3, d});
        s.vdlu_query_scalars = floats("vdlu_query_scalars", {n, 7});
        s.vdlu_key_scalars = floats("vdlu_key_scalars", {n, 7});
    }
    if (c.concat) s.concat = stored("concat", {n, d});
    if (c.cmfu) s.cmfu = stored("cmfu", {n, d});
    return s;
}

Rows rows_between(const Segment& s, int64_t start, int64_t stop) {
    if (start < 0 || stop < start || stop > s.rows) {
        const std::string asked = std::to_string(start) + ":" + std::to_string(stop);
        refuse("rows: " + asked + " is not within " + std::to_string(s.rows) + " rows");
    }
    return {start, nullptr, stop - start};
}

Rows rows_numbered(const Segment& s, const Numbers& numbers) {
    for (size_t i = 0; i < numbers.shape(0); i++) {
        const int64_t row = numbers.data()[i];
        if (row < 0 || row >= s.rows) {
            refuse("rows: number " + std::to_string(row) + " is not within " + std::to_string(s.rows) + " rows");
        }
    }
    return {0, numbers.data(), int64_t(numbers.shape(0))};
}

float* output(const char* name, const Output& out, const Prepared& prepared, const Rows& rows, int64_t* stride) {
    const std::string field = name;
    if (out.dtype() != nb::dtype<float>()) refuse(field + ": its dtype is not float32");
    std::vector<int64_t> shape, expected{prepared.batch.count, rows.count};
    for (size_t i = 0; i < out.ndim(); i++) shape.push_back(int64_t(out.shape(i)));
    if (shape != expected) refuse(field + ": shape " + shape_text(shape) + ", expected " + shape_text(expected));
    if (shape[0] > 0 && shape[1] > 1 && out.stride(1) != 1) refuse(field + ": its last axis is not contiguous");
    *stride = out.shape(0) > 1 ? out.stride(0) : 0;
    return static_cast<float*>(out.data());
}

// Working memory that a thread keeps from call to call.
class ThreadMemory {
  public:
    ~ThreadMemory() { std::free(data_); }
    Scratch at_least(size_t bytes) {
        bytes = (bytes + 4095) / 4096 * 4096;
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = std::aligned_alloc(4096, bytes);
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return {static_cast<char*>(data_), size_};
    }

  private:
    void* data_ = nullptr;
    size_t size_ = 0;
};

thread_local ThreadMemory memory;

Scratch scratch_of(const Prepared& prepared, const Segment& segment) {
    return memory.at_least(prepared.scratch_bytes(segment.tokens));
}

void run_totals(const Prepared& prepared, const Segment& segment, const Rows& rows, const Out& out) {
    nb::gil_scoped_release unlocked;
    if (rows.count == 0) return;
    prepared.kernels.totals(prepared.batch, segment, rows, out, scratch_of(prepared, segment));
}

void totals(const Prepared& prepared, const nb::dict& arrays, int64_t start, int64_t stop,
            std::optional<Numbers> numbers, const Output& total, const nb::dict& units) {
    const Segment segment = segment_of(prepared, arrays);
    const Rows rows = numbers ? rows_numbered(segment, *numbers) : rows_between(segment, start, stop);
    Out out;
    out.total = output("out", total, prepared, rows, &out.stride);
    const auto unit = [&](const char* name, float** where) {
        if (!units.contains(name)) return;
        *where = output(name, nb::cast<Output>(units[name]), prepared, rows, &out.unit_stride);
    };
    unit("tglu", &out.tglu);
    unit("vdlu", &out.vdlu);
    unit("concat", &out.concat);
    unit("cmfu", &out.cmfu);
    run_totals(prepared, segment, rows, out);
}

void bounds(const Prepared& prepared, const nb::dict& arrays, int64_t start, int64_t stop, const Output& total) {
    const Segment segment = segment_of(prepared, arrays);
    const Rows rows = rows_between(segment, start, stop);
    Out out;
    out.total = output("out", total, prepared, rows, &out.stride);
    nb::gil_scoped_release unlocked;
    if (rows.count == 0) return;
    prepared.kernels.bounds(prepared.batch, segment, rows, out, scratch_of(prepared, segment));
}

template <class T>
bool any_beyond(const void* codes, int64_t first, int64_t count, int64_t limit) {
    const T* code = static_cast<const T*>(codes) + first;
    T largest = 0;
    for (int64_t i = 0; i < count; i++) largest = code[i] > largest ? code[i] : largest;
    return count && int64_t(largest) >= limit;
}

Codes codes_of(const Input& codes, const Segment& segment) {
    const bool narrow = codes.dtype() == nb::dtype<uint8_t>(), wide = codes.dtype() == nb::dtype<uint16_t>();
    if (!narrow && !wide) refuse("codes: dtype is neither uint8 nor uint16");
    if (codes.ndim() != 2 || int64_t(codes.shape(0)) != segment.rows || int64_t(codes.shape(1)) != segment.tokens ||
        !contiguous(codes)) {
        refuse("codes: not a contiguous array " + shape_text({segment.rows, segment.tokens}));
    }
    return {codes.data(), wide};
}

void estimates(const Prepared& prepared, const nb::dict& arrays, const Input& stored, int64_t start, int64_t stop,
               const Output& total) {
    const Segment segment = segment_of(prepared, arrays);
    const Rows rows = rows_between(segment, start, stop);
    Out out;
    out.total = output("out", total, prepared, rows, &out.stride);
    if (!prepared.batch.constants.tglu) return run_totals(prepared, segment, rows, out);
    if (!prepared.centroids) refuse("prepared: without centroids, so without the tables of the estimates");
    const Codes codes = codes_of(stored, segment);
    nb::gil_scoped_release unlocked;
    if (rows.count == 0) return;
    const auto beyond = codes.wide ? any_beyond<uint16_t> : any_beyond<uint8_t>;
    if (beyond(codes.data, rows.start * segment.tokens, rows.count * segment.tokens, prepared.centroids)) {
        refuse("codes: one is not below the number of centroids, " + std::to_string(prepared.centroids));
    }
    prepared.kernels.estimates(prepared.batch, segment, codes, rows, out, scratch_of(prepared, segment));
}

// A segment's names, mapped; it keeps the arrays alive.
class NameTable {
  public:
    NameTable(nb::dict arrays, std::optional<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig>> alive, int64_t rows,
              nb::ndarray<const double, nb::ndim<1>, nb::c_contig> idf)
        : arrays_(arrays), alive_(alive), idf_(idf) {
        forms_.rows = rows;
        forms_.form_row = get<uint32_t>("form_row", &forms_.forms);
        forms_.word_offset = get<uint64_t>("word_offset", nullptr, forms_.forms + 1);
        forms_.form_word = get<uint32_t>("form_word", &forms_.entries);
        forms_.word_hash = get<uint64_t>("word_hash", &forms_.words);
        forms_.posting_offset = get<uint64_t>("posting_offset", nullptr, forms_.words + 1);
        forms_.posting = get<uint32_t>("posting", nullptr, forms_.entries);
        forms_.gram_count = get<uint16_t>("gram_count", nullptr, forms_.forms);
        forms_.gram_code = get<uint64_t>("gram_code", &forms_.grams);
        forms_.gram_offset = get<uint64_t>("gram_offset", nullptr, forms_.grams + 1);
        forms_.gram_posting = get<uint32_t>("gram_posting", &forms_.gram_entries);
        if (alive && int64_t(alive->shape(0)) != rows) refuse("alive: not one value a row");
        if (int64_t(idf.shape(0)) != forms_.words) refuse("idf: not one value a word");
        forms_.alive = alive ? alive->data() : nullptr;
        forms_.idf = idf.data();
        for (int64_t i = 0; i < forms_.forms; i++) forms_.most_grams = std::max<int64_t>(forms_.most_grams, forms_.gram_count[i]);
    }

    nb::tuple look_up(const std::vector<uint64_t>& words, const std::vector<double>& squares, double norm,
                      const std::vector<uint64_t>& context, const std::vector<uint64_t>& grams,
                      const std::vector<uint32_t>& equal, double least_words, double least_chars) const {
        if (squares.size() != words.size()) refuse("squares: not one value a word");
        NameFound found;
        {
            nb::gil_scoped_release unlocked;
            found = mimic::look_up(forms_, {words, squares, norm, context, grams, equal, least_words, least_chars});
        }
        return nb::make_tuple(array(std::move(found.rows)), array(std::move(found.exact)), array(std::move(found.words)),
                              array(std::move(found.chars)), array(std::move(found.context)));
    }

  private:
    template <class T>
    const T* get(const char* name, int64_t* count, int64_t expected = -1) {
        if (!arrays_.contains(name)) refuse(std::string(name) + ": missing");
        const auto found = nb::cast<nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>>(arrays_[name]);
        const int64_t length = int64_t(found.shape(0));
        if (expected >= 0 && length != expected) refuse(std::string(name) + ": " + std::to_string(length) + " entries");
        if (count) *count = length;
        return found.data();
    }

    template <class T>
    static nb::ndarray<nb::numpy, T, nb::ndim<1>> array(std::vector<T>&& values) {
        auto* owned = new std::vector<T>(std::move(values));
        nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
        return nb::ndarray<nb::numpy, T, nb::ndim<1>>(owned->data(), {owned->size()}, owner);
    }

    nb::dict arrays_;
    std::optional<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig>> alive_;
    nb::ndarray<const double, nb::ndim<1>, nb::c_contig> idf_;
    NameForms forms_;
};

}  // namespace

}  // namespace mimic

NB_MODULE(_cpu, m) {
    using namespace mimic;
    nb::set_leak_warnings(false);  // an object alive when the interpreter ends is no fault of the user's
    m.doc() = "Compiled passes of the scan; see mimic_engine/scan/cpu.py and mimic_engine/names/lookup.py.";
    nb::class_<Constants>(m, "Constants");
    nb::class_<Prepared>(m, "Prepared").def_prop_ro("count", [](const Prepared& p) { return p.batch.count; });
    nb::class_<NameTable>(m, "NameTable")
        .def(nb::init<nb::dict, std::optional<nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig>>, int64_t,
                      nb::ndarray<const double, nb::ndim<1>, nb::c_contig>>(),
             nb::arg("arrays"), nb::arg("alive").none(), nb::arg("rows"), nb::arg("idf"))
        .def("look_up", &NameTable::look_up);
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const Kernels* k : supported()) names.push_back(k->name);
        return names;
    });
    m.def("constants", &constants_of);
    m.def("prepare", &prepare, nb::arg("isa"), nb::arg("constants"), nb::arg("arrays"), nb::arg("sweeps"),
          nb::arg("centroids").none());
    m.def("choose", &choose, nb::arg("prepared"), nb::arg("rows"), nb::keep_alive<0, 1>());
    m.def("totals", &totals, nb::arg("prepared"), nb::arg("entities"), nb::arg("start"), nb::arg("stop"),
          nb::arg("numbers").none(), nb::arg("out").noconvert(), nb::arg("units"));
    m.def("bounds", &bounds, nb::arg("prepared"), nb::arg("entities"), nb::arg("start"), nb::arg("stop"),
          nb::arg("out").noconvert());
    m.def("estimates", &estimates, nb::arg("prepared"), nb::arg("entities"), nb::arg("codes").noconvert(),
          nb::arg("start"), nb::arg("stop"), nb::arg("out").noconvert());
}
