// Where a program's time goes, by kind of work: off unless asked for.
#pragma once
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace kvern {

// One kind of work over one number of rows.
struct Note {
    int32_t stage = 0, chain = 0;  // StageKind; 0 embedding, 1 attention units, 2 feed-forward units, 3 head
    int32_t format = -1;           // of the (first) weight; -1: none
    int64_t rows = 0;              // of the whole step
    int64_t calls = 0, nanoseconds = 0;
    int64_t bytes = 0;       // of weights, or of K and V, read once each
    int64_t operations = 0;  // multiplications and additions of linears and of attention
};

class Profile {
  public:
    bool on() const { return on_.load(std::memory_order_relaxed); }
    void turn(bool on) { on_.store(on); }
    // Adds up notes of a kind, and empties the list.
    void add(std::vector<Note>& notes);
    // The sums since the last call.
    std::vector<Note> take();

  private:
    using Key = std::tuple<int32_t, int32_t, int32_t, int64_t>;
    std::atomic<bool> on_{false};
    std::mutex adding_;
    std::map<Key, Note> sums_;
};

}  // namespace kvern
