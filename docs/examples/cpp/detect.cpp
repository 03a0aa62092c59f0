// Runs a detector of `resobj-d2 export --format aoti` on a picture, without Python. LibTorch as for
// operators.cpp, of the version of the torch that exported the detector:
//
//   c++ -std=c++20 -O1 detect.cpp -o detect -I$TORCH/include \
//       -L$TORCH/lib -Wl,-rpath,$TORCH/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl
//   ./detect /path/to/libresobj_cpu.so detector.pt2 picture.ppm [least score]
//
// It prints a line for each detection: score, x0 y0 x1 y1 in pixels of the picture, class.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_upsample_bilinear2d_aa.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

using at::Tensor;
using Metadata = std::unordered_map<std::string, std::string>;

// The lines of an entry that the export wrote.
std::vector<std::string> entry(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find("resobj_d2." + key);
  if (found == metadata.end()) {
    throw std::runtime_error("the package has no entry " + key + ": export it again");
  }
  std::vector<std::string> lines;
  std::istringstream text(found->second);
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

int64_t number(const Metadata& metadata, const std::string& key) {
  return std::stoll(entry(metadata, key).at(0));
}

// A number of a header, before which may stand white space and comments.
int64_t read_number(std::istream& file) {
  while (std::isspace(file.peek()) || file.peek() == '#') {
    if (file.get() == '#') file.ignore(1 << 20, '\n');
  }
  int64_t value = 0;
  file >> value;
  return value;
}

// (1, 3, H, W) uint8, RGB, of a binary PPM: convert photo.jpg photo.ppm
Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  char kind[2] = {};
  file.read(kind, 2);
  const int64_t width = read_number(file), height = read_number(file), most = read_number(file);
  file.get();
  if (kind[0] != 'P' || kind[1] != '6' || most != 255 || width < 1 || height < 1 ||
      width > 100'000 || height > 100'000) {
    throw std::runtime_error(path + " is not a binary PPM (P6) of 8 bits");
  }
  const Tensor pixels = at::empty({1, height, width, 3}, at::kByte);
  file.read(reinterpret_cast<char*>(pixels.mutable_data_ptr<uint8_t>()), pixels.numel());
  if (file.gcount() != pixels.numel()) throw std::runtime_error(path + " is cut off");
  return pixels.permute({0, 3, 1, 2}).contiguous();
}

// The size at which the detector sees a picture of this height and width.
std::pair<int64_t, int64_t> resized(const Metadata& metadata, int64_t height, int64_t width) {
  if (const auto fixed = entry(metadata, "resize_to"); !fixed.empty()) {
    return {std::stoll(fixed.at(0)), std::stoll(fixed.at(1))};
  }
  const double shorter = number(metadata, "shorter_side"),
               longest = number(metadata, "longest_side");
  double scale = shorter / std::min(height, width);
  scale = std::min(scale, longest / std::max(height, width));
  return {static_cast<int64_t>(height * scale + 0.5), static_cast<int64_t>(width * scale + 0.5)};
}

// images, image_sizes and original_sizes of docs/export.md.
std::vector<Tensor> inputs_of(const Metadata& metadata, Tensor picture) {
  const int64_t original_height = picture.size(2), original_width = picture.size(3);
  const auto [height, width] = resized(metadata, original_height, original_width);
  if (height != original_height || width != original_width) {
    picture = at::_upsample_bilinear2d_aa(picture, {height, width}, /*align_corners=*/false);
  }
  if (entry(metadata, "channels").at(0) == "BGR") picture = picture.flip(1);
  const int64_t unit = number(metadata, "size_divisibility");
  const auto whole = [unit](int64_t side) { return (side + unit - 1) / unit * unit; };
  const Tensor images = at::zeros({1, 3, whole(height), whole(width)}, at::kByte);
  images.narrow(2, 0, height).narrow(3, 0, width).copy_(picture);
  return {images, at::tensor({height, width}).view({1, 2}),
          at::tensor({original_height, original_width}).view({1, 2})};
}

void run(const std::string& package, const std::string& picture, double least_score) {
  const c10::InferenceMode guard;
  if (!std::ifstream(package)) throw std::runtime_error("cannot read " + package);
  torch::inductor::AOTIModelPackageLoader detector(package);
  const Metadata metadata = detector.get_metadata();
  const auto device = metadata.find("AOTI_DEVICE_KEY");
  if (device != metadata.end() && device->second != "cpu") {
    throw std::runtime_error(package + " is for " + device->second + ", this program for the CPU");
  }
  const auto outputs = entry(metadata, "outputs");
  if (outputs != std::vector<std::string>{"boxes", "scores", "classes", "counts"}) {
    throw std::runtime_error(package + " selects no detections: export it without --raw");
  }
  const auto names = entry(metadata, "class_names");
  const auto results = detector.run(inputs_of(metadata, read_ppm(picture)));
  const Tensor &boxes = results.at(0), &scores = results.at(1), &classes = results.at(2);
  const int64_t count = results.at(3)[0].item<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const double score = scores[0][i].item<double>();
    if (score < least_score) break;  // they descend
    std::printf("%.6f", score);
    for (int64_t j = 0; j < 4; ++j) std::printf(" %.4f", boxes[0][i][j].item<double>());
    std::printf(" %s\n", names.at(classes[0][i].item<int64_t>()).c_str());
  }
}

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: %s libresobj_cpu.so detector.pt2 picture.ppm [score]\n", argv[0]);
    return 2;
  }
  // Loading it defines the operators that the detector ends with.
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "error: %s\n", dlerror());
    return 1;
  }
  try {
    run(argv[2], argv[3], argc == 5 ? std::atof(argv[4]) : 0.0);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
