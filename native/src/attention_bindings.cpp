// Python's view of the attention kernels alone, for tests and benchmarks: `KvStore`, keys and values outside any
// model.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "array_arguments.h"
#include "bindings.h"
#include "dispatch.h"

namespace nb = nanobind;

namespace kvern {
namespace {

using Rows = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* message) {
    if (!ok) throw std::invalid_argument(message);
}

// 64-byte aligned bytes.
class Bytes {
  public:
    explicit Bytes(size_t size) : memory_(size + 64), at_(memory_.data()) {
        while (reinterpret_cast<uintptr_t>(at_) % 64 != 0) ++at_;
    }
    uint8_t* at(size_t offset) { return at_ + offset; }
    float* floats() { return reinterpret_cast<float*>(at_); }

  private:
    std::vector<uint8_t> memory_;
    uint8_t* at_;
};

class KvStore {
  public:
    KvStore(const std::string& format, int kv_heads, int head_dim, int tokens)
        : layout_(checked(format, kv_heads, head_dim, tokens), head_dim),
          tail_layout_(KvFormat::bf16, head_dim),
          kv_heads_(kv_heads),
          pages_((tokens + kPageTokens - 1) / kPageTokens),
          bytes_(static_cast<size_t>(pages_) * kv_heads * layout_.block_bytes),
          tail_(layout_.format.tail() ? static_cast<size_t>(pages_) * kv_heads * tail_layout_.block_bytes : 0) {}

    void append(const Rows& k, const Rows& v, const std::string& isa) {
        const KernelTable& kernels = kernels_for(isa);
        require(k.shape(1) == static_cast<size_t>(kv_heads_) && v.shape(1) == k.shape(1) &&
                    v.shape(0) == k.shape(0) && k.shape(2) == static_cast<size_t>(layout_.head_dim) &&
                    v.shape(2) == k.shape(2),
                "keys and values must be [tokens, kv_heads, head_dim]");
        require(k.shape(0) <= static_cast<size_t>(pages_ * kPageTokens - count_),
                "more tokens than there is room for");
        const size_t width = k.shape(1) * k.shape(2);
        std::vector<float> keys(k.data(), k.data() + k.size());
        for (size_t t = 0; t < k.shape(0); ++t, ++count_) {
            const bool tail = layout_.format.tail();
            RopeAppendRow row{};
            row.k = keys.data() + t * width, row.v = v.data() + t * width;
            row.layout = tail ? &tail_layout_ : &layout_;
            row.block = tail ? tail_block(count_ / kPageTokens) : block(count_ / kPageTokens);
            row.kv_heads = kv_heads_, row.slot = count_ % kPageTokens;
            kernels.attention.rope_append(row);
            if (tail && count_ % kPageTokens == kPageTokens - 1) seal(kernels, count_ / kPageTokens);
        }
    }

    // Rows at positions first .. first + R of q [R, heads, head_dim]; `together` rows a call, split at chunks or not.
    nb::ndarray<nb::numpy, float, nb::ndim<3>> attend(const Rows& q, int first, float scale, int window, int chunk,
                                                      int together, bool split, int repeats, const std::string& isa) {
        const KernelTable& kernels = kernels_for(isa);
        const auto rows = static_cast<int>(q.shape(0)), heads = static_cast<int>(q.shape(1));
        require(rows > 0 && first >= 0 && first + rows <= count_, "rows must lie at positions that were appended");
        require(q.shape(2) == static_cast<size_t>(layout_.head_dim) && heads > 0 && heads % kv_heads_ == 0 &&
                    heads / kv_heads_ <= kMaxVectors,
                "queries must be [rows, heads, head_dim] with heads a multiple of kv_heads");
        require(chunk > 0 && chunk <= kChunkTokens && chunk % kPageTokens == 0,
                "chunk is a multiple of 64 up to 512");
        require(window >= 0 && repeats > 0 && together > 0 && together * (heads / kv_heads_) <= kMaxVectors,
                "window, repeats or rows together out of range");
        auto out = new_array<float, 3>({q.shape(0), q.shape(1), q.shape(2)});
        const nb::gil_scoped_release release;
        for (int i = 0; i < repeats; ++i) {
            Request request{q.data(), out.data(), rows, heads, first, scale, window, chunk, together, split};
            run(kernels, request);
        }
        return out;
    }

    // Reads what a decode step at the end would read, and does nothing with it; bytes.
    int64_t read(int repeats, const std::string& isa) {
        const KernelTable& kernels = kernels_for(isa);
        require(count_ > 0 && repeats > 0, "tokens and repeats must be above 0");
        const nb::gil_scoped_release release;
        const int pages = (count_ + kPageTokens - 1) / kPageTokens;
        const int coded = layout_.format.tail() ? std::max(0, pages - 2) : pages;
        const auto bytes = static_cast<int64_t>(coded * kv_heads_ * layout_.block_bytes);
        const auto recent = static_cast<int64_t>((pages - coded) * kv_heads_ * tail_layout_.block_bytes);
        int64_t done = 0;
        for (int i = 0; i < repeats; ++i) {
            if (coded > 0) done += kernels.linear.read_memory(block(0), bytes);
            if (recent > 0) done += kernels.linear.read_memory(tail_block(coded), recent);
        }
        return done;
    }

    size_t block_bytes() const { return layout_.block_bytes; }

  private:
    struct Request {
        const float* q;
        float* out;
        int rows, heads, first;
        float scale;
        int window, chunk, together;
        bool split;
    };

    static KvFormat checked(const std::string& format, int kv_heads, int head_dim, int tokens) {
        require(kv_heads > 0 && kv_heads <= 1024 && tokens > 0 && tokens <= (1 << 22), "kv_heads or tokens");
        require(head_dim >= 4 && head_dim <= kMaxHeadDim && head_dim % 4 == 0,
                "head_dim is a multiple of 4 up to 512");
        return parse_kv_format(format);
    }
    uint8_t* block(int page) { return bytes_.at(static_cast<size_t>(page) * kv_heads_ * layout_.block_bytes); }
    uint8_t* tail_block(int page) {
        return tail_.at(static_cast<size_t>(page) * kv_heads_ * tail_layout_.block_bytes);
    }
    void seal(const KernelTable& kernels, int page) {
        for (int h = 0; h < kv_heads_; ++h)
            kernels.attention.seal({tail_block(page) + h * tail_layout_.block_bytes, &tail_layout_,
                                    block(page) + h * layout_.block_bytes, &layout_});
    }

    void run(const KernelTable& kernels, const Request& request) {
        std::vector<int32_t> positions(static_cast<size_t>(request.rows));
        for (int r = 0; r < request.rows; ++r) positions[static_cast<size_t>(r)] = request.first + r;
        for (int begin = 0, end; begin < request.rows; begin = end) {
            const int first = request.first + begin;
            end = std::min({begin + request.together, begin + kPageTokens - first % kPageTokens, request.rows});
            std::vector<KvSpan> spans;
            for (int page = 0; page <= (request.first + end - 1) / kPageTokens; ++page)
                spans.push_back(layout_.format.tail() && page > first / kPageTokens - 2
                                    ? KvSpan{tail_block(page), &tail_layout_}
                                    : KvSpan{block(page), &layout_});
            for (int head = 0; head < kv_heads_; ++head)
                run_head(kernels, request, head, {begin, end}, positions.data(), spans.data());
        }
    }

    struct Part {
        int begin, end;
    };
    void run_head(const KernelTable& kernels, const Request& request, int head, Part rows, const int32_t* positions,
                  const KvSpan* spans) {
        const int dim = layout_.head_dim, group = request.heads / kv_heads_, padded = layout_.padded_dim;
        const size_t scratch = attend_scratch_floats(padded, request.chunk);
        if (scratch_.size() < scratch + 16) scratch_.resize(scratch + 16);
        AttendWork work{};
        const size_t stride = static_cast<size_t>(request.heads) * dim, at = rows.begin * stride + head * group * dim;
        work.q = request.q + at, work.out = request.out + at;
        work.q_stride = work.out_stride = stride;
        work.positions = positions + rows.begin, work.rows = rows.end - rows.begin, work.group = group;
        work.spans = spans, work.head = head, work.head_dim = dim, work.padded_dim = padded;
        work.scale = request.scale, work.window = request.window, work.chunk_tokens = request.chunk;
        work.scratch = scratch_.data();
        while (reinterpret_cast<uintptr_t>(work.scratch) % 64 != 0) ++work.scratch;
        const int lowest = request.window > 0 ? std::max(0, work.positions[0] - request.window + 1) : 0;
        work.chunk_begin = lowest / request.chunk, work.chunk_end = work.positions[work.rows - 1] / request.chunk + 1;
        if (!request.split) return kernels.attention.attend(work);
        run_split(kernels, request, work);
    }

    // One call per softmax chunk, then the merges.
    void run_split(const KernelTable& kernels, const Request& request, AttendWork work) {
        const size_t each = static_cast<size_t>(work.padded_dim) + 2,
                     vectors = static_cast<size_t>(work.rows * work.group);
        const int first = work.chunk_begin, end = work.chunk_end;
        std::vector<float> partials(vectors * each * static_cast<size_t>(end - first)), scratch(each + 16);
        for (int chunk = first; chunk < end; ++chunk) {
            work.chunk_begin = chunk, work.chunk_end = chunk + 1;
            work.partials = partials.data() + static_cast<size_t>(chunk - first) * vectors * each;
            kernels.attention.attend(work);
        }
        for (size_t v = 0; v < vectors; ++v) {
            const size_t row = v / static_cast<size_t>(work.group), head = v % static_cast<size_t>(work.group);
            const int last = work.positions[row],
                      from = request.window > 0 ? std::max(0, last - request.window + 1) : 0;
            const int begin = from / request.chunk;
            kernels.attention.attend_merge(
                {partials.data() + (static_cast<size_t>(begin - first) * vectors + v) * each, vectors * each,
                 last / request.chunk + 1 - begin, work.head_dim, work.padded_dim,
                 work.out + row * work.out_stride + head * static_cast<size_t>(work.head_dim), scratch.data()});
        }
    }

    KvLayout layout_, tail_layout_;
    int kv_heads_, pages_, count_ = 0;
    Bytes bytes_, tail_;
    std::vector<float> scratch_;
};

}  // namespace

void register_attention(nb::module_& m) {
    nb::class_<KvStore>(m, "KvStore")
        .def(nb::init<const std::string&, int, int, int>(), nb::arg("kv_format"), nb::arg("kv_heads"),
             nb::arg("head_dim"), nb::arg("tokens"))
        .def("append", &KvStore::append, nb::arg("k"), nb::arg("v"), nb::arg("isa") = "",
             "Writes float32 [T, kv_heads, head_dim] behind the tokens already there, without rotation.")
        .def("attend", &KvStore::attend, nb::arg("q"), nb::arg("first"), nb::arg("scale"), nb::arg("window") = 0,
             nb::arg("chunk") = kChunkTokens, nb::arg("together") = 1, nb::arg("split") = false,
             nb::arg("repeats") = 1, nb::arg("isa") = "",
             "float32 [R, heads, head_dim]: causal attention of rows at positions first..first + R, on one thread.")
        .def("read", &KvStore::read, nb::arg("repeats") = 1, nb::arg("isa") = "",
             "Reads the bytes that attention at the last position reads; returns how many.")
        .def_prop_ro("block_bytes", &KvStore::block_bytes, "Bytes of 64 tokens of one KV head.");
}

}  // namespace kvern
