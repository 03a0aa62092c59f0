// Greedy non-maximum suppression on the CPU, used by every kernel that ends with it.
//
// Boxes are offered one by one by descending score, and each class has a list of its kept boxes. A
// caller may stop as soon as it has enough, since later boxes do not affect earlier ones.
//
//   const std::vector<int32_t> order = order_by_score(scores, count);
//   GreedyNms<T> nms(num_classes, round_down<T>(iou_threshold));
//   run_vectorized([&] {
//     for (const int32_t i : order) {
//       if (enough) break;
//       if (nms.offer(class_of(i), box_of(i))) keep(i);
//     }
//   });
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "instruction_sets.h"
#include "resobj/bits.h"
#include "resobj/nms_math.h"

namespace resobj {

template <typename T>
class GreedyNms {
 public:
  // `threshold` is 0 or more.
  GreedyNms(int64_t num_classes, T threshold)
      : threshold_(threshold), first_block_(num_classes, kNone) {}

  // Whether the box is kept: its IoU with every kept box of its class in [0, num_classes) is at
  // most the threshold. Boxes of a class must come by descending score. Call it in run_vectorized.
  bool offer(int64_t box_class, const Box<T>& box) {
    const T box_area = area(box);
    int32_t last = kNone;
    for (int32_t b = first_block_[box_class]; b != kNone; b = blocks_[b].next) {
      if (blocks_[b].suppress(box, box_area, threshold_)) return false;
      last = b;
    }
    append(box_class, last, box, box_area);
    return true;
  }

 private:
  static constexpr int kLanes = 16;  // one or two of the widest vectors
  static constexpr int kBlock = 64;  // boxes between checks for a suppressor
  static constexpr int32_t kNone = -1;

  // Unused lanes hold boxes without area, which suppress nothing.
  struct alignas(64) Block {
    T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
    int32_t count;
    int32_t next;  // of the same class

    bool suppress(const Box<T>& box, T box_area, T threshold) const {
      if (count == kBlock) return suppress_any<kBlock>(0, box, box_area, threshold);
      for (int first = 0; first < count; first += kLanes) {
        if (suppress_any<kLanes>(first, box, box_area, threshold)) return true;
      }
      return false;
    }

   private:
    template <int kNumber>
    bool suppress_any(int first, const Box<T>& box, T box_area, T threshold) const {
      // As wide as T, so that the loops vectorise.
      using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
      Flag any = 0;
      for (int k = first; k < first + kNumber; ++k) {
        const Box<T> kept{x1[k], y1[k], x2[k], y2[k]};
        any |= may_suppress(kept, area[k], box, box_area, threshold);
      }
      if (any == 0) return false;
      any = 0;
      for (int k = first; k < first + kNumber; ++k) {
        const Box<T> kept{x1[k], y1[k], x2[k], y2[k]};
        any |= suppresses(kept, area[k], box, box_area, threshold);
      }
      return any != 0;
    }
  };

  void append(int64_t box_class, int32_t last, const Box<T>& box, T box_area) {
    if (last == kNone || blocks_[last].count == kBlock) {
      const int32_t added = static_cast<int32_t>(blocks_.size());
      blocks_.emplace_back();
      blocks_.back().next = kNone;
      (last == kNone ? first_block_[box_class] : blocks_[last].next) = added;
      last = added;
    }
    Block& block = blocks_[last];
    const int32_t k = block.count++;
    block.x1[k] = box.x1;
    block.y1[k] = box.y1;
    block.x2[k] = box.x2;
    block.y2[k] = box.y2;
    block.area[k] = box_area;
  }

  const T threshold_;
  std::vector<int32_t> first_block_;  // by class
  std::vector<Block> blocks_;
};

// Orders scores from highest to lowest, ties by index.
template <typename T>
class ScoreOrder {
 public:
  // The indices of the scores in [0, count) by descending score, without NaN scores.
  static std::vector<int32_t> sort(const T* scores, int64_t count) {
    std::vector<Entry> entries;
    entries.reserve(count);
    bool sorted = true;
    Key last = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (scores[i] != scores[i]) continue;
      const Key key = descending_key(scores[i]);
      sorted &= last <= key;
      last = key;
      entries.push_back({key, static_cast<int32_t>(i)});
    }
    if (!sorted) sort(entries);
    std::vector<int32_t> order(entries.size());
    for (size_t r = 0; r < order.size(); ++r) order[r] = entries[r].index;
    return order;
  }

 private:
  using Key = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr int kKeyBits = 8 * sizeof(Key);
  static constexpr int kDigitBits = 11;
  static constexpr int kDigits = (kKeyBits + kDigitBits - 1) / kDigitBits;
  static constexpr Key kBuckets = Key(1) << kDigitBits;
  static constexpr size_t kSmall = 256;  // below, comparing is cheaper than clearing buckets

  struct Entry {
    Key key;
    int32_t index;
  };

  // Ascending where the score descends; -0 and 0 are equal.
  static Key descending_key(T score) {
    const Key bits = bit_cast<Key>(score + T(0));
    const Key sign = Key(1) << (kKeyBits - 1);
    return (bits & sign) != 0 ? bits : bits ^ (sign - 1);
  }

  static void sort(std::vector<Entry>& entries) {
    if (entries.size() < kSmall) {
      std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return a.key != b.key ? a.key < b.key : a.index < b.index;
      });
    } else {
      radix_sort(entries);
    }
  }

  // From the least significant digit on; each pass is stable.
  static void radix_sort(std::vector<Entry>& entries) {
    std::vector<std::array<int32_t, kBuckets>> starts(kDigits);
    for (const Entry& entry : entries) {
      for (int d = 0; d < kDigits; ++d) ++starts[d][digit(entry.key, d)];
    }
    std::vector<Entry> target(entries.size());
    for (int d = 0; d < kDigits; ++d) {
      int32_t start = 0;
      for (int32_t& bucket : starts[d]) {
        const int32_t size = bucket;
        bucket = start;
        start += size;
      }
      for (const Entry& entry : entries) target[starts[d][digit(entry.key, d)]++] = entry;
      entries.swap(target);
    }
  }

  static size_t digit(Key key, int d) { return key >> (d * kDigitBits) & (kBuckets - 1); }
};

template <typename T>
std::vector<int32_t> order_by_score(const T* scores, int64_t count) {
  return ScoreOrder<T>::sort(scores, count);
}

}  // namespace resobj
