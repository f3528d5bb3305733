#include "profile.h"

namespace kvern {

void Profile::add(std::vector<Note>& notes) {
    if (notes.empty()) return;
    const std::lock_guard lock(adding_);
    for (const Note& note : notes) {
        const auto [at, fresh] = sums_.try_emplace({note.stage, note.chain, note.format, note.rows}, note);
        if (fresh) continue;
        Note& sum = at->second;
        sum.calls += note.calls, sum.nanoseconds += note.nanoseconds;
        sum.bytes += note.bytes, sum.operations += note.operations;
    }
    notes.clear();
}

std::vector<Note> Profile::take() {
    const std::lock_guard lock(adding_);
    std::vector<Note> found;
    for (const auto& [key, note] : sums_) found.push_back(note);
    sums_.clear();
    return found;
}

}  // namespace kvern
