// Numbers the classes of a set of boxes, and groups the boxes by class.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace resobj {

// Maps class ids, which may be any int64, to [0, count()). Ids in a small range, the usual case,
// are just shifted; others are looked up.
class ClassIndex {
 public:
  ClassIndex(const int64_t* ids, int64_t number) {
    if (number == 0) return;
    const auto [lowest, highest] = std::minmax_element(ids, ids + number);
    lowest_ = *lowest;
    // Unsigned, since the difference of two int64 may overflow.
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
  std::vector<int64_t> sorted_;  // empty if ids are just shifted
};

// The boxes of class c are members[begins[c]] to members[begins[c + 1]].
struct ClassGroups {
  std::vector<int32_t> members;
  std::vector<int32_t> begins;

  int64_t count() const { return static_cast<int64_t>(begins.size()) - 1; }
  int32_t size(int64_t c) const { return begins[c + 1] - begins[c]; }
  const int32_t* group(int64_t c) const { return members.data() + begins[c]; }

  // Grain for parallel_for over classes if every pair of boxes of a class is visited: a single
  // thread unless there is about a millisecond of work.
  int64_t grain() const {
    int64_t pairs = 0;
    for (int64_t c = 0; c < count(); ++c) pairs += int64_t(size(c)) * size(c);
    return pairs < (int64_t(1) << 21) ? count() : 1;
  }
};

// Boxes of a class keep their order.
inline ClassGroups group_by_class(const std::vector<int32_t>& order, const int64_t* ids,
                                  const ClassIndex& classes) {
  ClassGroups groups{std::vector<int32_t>(order.size()), std::vector<int32_t>(classes.count() + 1)};
  for (const int32_t i : order) ++groups.begins[classes(ids[i]) + 1];
  for (int64_t c = 0; c < classes.count(); ++c) groups.begins[c + 1] += groups.begins[c];
  std::vector<int32_t> ends(groups.begins.begin(), groups.begins.end() - 1);
  for (const int32_t i : order) groups.members[ends[classes(ids[i])]++] = i;
  return groups;
}

}  // namespace resobj
