// Numbers the classes of a set of boxes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace resobj {

// Maps class ids, which may be any int64, to [0, count()). Ids close to each other, the usual case,
// are only shifted; others are looked up.
class ClassIndex {
 public:
  ClassIndex(const int64_t* ids, int64_t number) {
    if (number == 0) return;
    const auto [lowest, highest] = std::minmax_element(ids, ids + number);
    lowest_ = *lowest;
    // Unsigned: the difference of two int64 may not be one.
    const uint64_t range = uint64_t(*highest) - uint64_t(*lowest);
    if (range < uint64_t(kSpread * number + kSmall)) {
      count_ = static_cast<int64_t>(range) + 1;
      return;
    }
    sorted_.assign(ids, ids + number);
    std::sort(sorted_.begin(), sorted_.end());
    sorted_.erase(std::unique(sorted_.begin(), sorted_.end()), sorted_.end());
    count_ = static_cast<int64_t>(sorted_.size());
  }

  int64_t count() const { return count_; }

  int64_t operator()(int64_t id) const {
    if (sorted_.empty()) return id - lowest_;
    return std::lower_bound(sorted_.begin(), sorted_.end(), id) - sorted_.begin();
  }

 private:
  static constexpr int64_t kSpread = 4;
  static constexpr int64_t kSmall = 1024;

  int64_t lowest_ = 0;
  int64_t count_ = 0;
  std::vector<int64_t> sorted_;  // empty where ids are only shifted
};

}  // namespace resobj
