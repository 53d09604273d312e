// Classifies images with a package from `wae export --format aoti`, in a program without Python (docs/serving.md).
//
//     classify MODEL.pt2 _C.abi3.so SIDE < images
//
// Standard input holds the images one after the other, 3 x SIDE x SIDE bytes each: red, then green, then blue. For each
// image the program prints a line: the number of the best class, and its score.

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Loads the ops that the package calls: the library registers itself when it is loaded.
void load_ops(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
}

at::Tensor read_images(std::int64_t side) {
  const std::vector<char> bytes{std::istreambuf_iterator<char>(std::cin), {}};
  const std::int64_t image = 3 * side * side;
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (image <= 0 || size == 0 || size % image != 0) {
    throw std::runtime_error("needs images of " + std::to_string(image) + " bytes, got " +
                             std::to_string(size) + " bytes");
  }
  return at::from_blob(const_cast<char*>(bytes.data()), {size / image, 3, side, side}, at::kByte).clone();
}

void classify(const char* package, std::int64_t side) {
  torch::inductor::AOTIModelPackageLoader model(package);
  const at::Tensor scores = model.run({read_images(side)}).at(0);
  const auto [best, number] = scores.max(1);
  for (std::int64_t i = 0; i < scores.size(0); ++i) {
    std::cout << number[i].item<std::int64_t>() << ' ' << best[i].item<float>() << '\n';
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "classify MODEL.pt2 _C.abi3.so SIDE < images\n";
    return 2;
  }
  try {
    load_ops(arguments[2]);
    classify(arguments[1], std::atoll(arguments[3]));
  } catch (const std::exception& error) {
    std::cerr << "classify: " << error.what() << '\n';
    return 1;
  }
}
