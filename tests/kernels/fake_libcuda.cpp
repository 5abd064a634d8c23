// A libcuda.so.1 that launches nothing: it writes down what it is asked, one JSON object a line, into $FAKE_CUDA_LOG.
// FAKE_CUDA_CAPABILITY: "9.0". FAKE_CUDA_SHARED: bytes of shared memory that a block may have. FAKE_CUDA_PARAMETERS: a
// file, `name offset:size …` a line, what the entry of that name, or the image whose text begins with it, really takes.
// FAKE_CUDA_FAIL: the call that fails.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

struct Fake {
  std::string entry;
  std::string image;
};

void log(const std::string& line) {
  std::ofstream(std::getenv("FAKE_CUDA_LOG"), std::ios::app) << line << "\n";
}

int result(const char* call) {
  const char* fails = std::getenv("FAKE_CUDA_FAIL");
  return fails != nullptr && std::strcmp(fails, call) == 0 ? 700 : 0;
}

std::vector<std::pair<size_t, size_t>> parameters(const Fake& function) {
  std::ifstream file(std::getenv("FAKE_CUDA_PARAMETERS"));
  std::vector<std::pair<size_t, size_t>> found;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    size_t offset = 0, size = 0;
    char colon = 0;
    while ((name == function.entry || function.image.rfind(name + ".", 0) == 0) && words >> offset >> colon >> size)
      found.emplace_back(offset, size);
  }
  return found;
}

}  // namespace

API int cuInit(unsigned) {
  return result("cuInit");
}

API int cuGetErrorName(int error, const char** name) {
  *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_UNKNOWN";
  return 0;
}

API int cuCtxGetCurrent(void** context) {
  static int one;
  *context = std::getenv("FAKE_CUDA_NO_CONTEXT") != nullptr ? nullptr : &one;
  return result("cuCtxGetCurrent");
}

API int cuCtxGetDevice(int* device) {
  *device = 3;
  return 0;
}

API int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device != 3) return 101;
  const char* capability = std::getenv("FAKE_CUDA_CAPABILITY");
  if (attribute == 75) *value = std::atoi(capability);
  if (attribute == 76) *value = std::atoi(std::strchr(capability, '.') + 1);
  if (attribute == 97) *value = std::atoi(std::getenv("FAKE_CUDA_SHARED"));
  return 0;
}

API int cuModuleLoadData(void** module, const void* image) {
  *module = const_cast<void*>(image);
  std::string text(static_cast<const char*>(image), strnlen(static_cast<const char*>(image), 40));
  for (char& c : text)
    if (c < ' ' || c > '~' || c == '"' || c == '\\') c = '.';
  log("{\"call\":\"load\",\"image\":\"" + text + "\"}");
  return result("cuModuleLoadData");
}

API int cuModuleGetFunction(void** function, void* module, const char* name) {
  const char* image = static_cast<const char*>(module);
  *function = new Fake{name, std::string(image, strnlen(image, 200))};
  return result("cuModuleGetFunction");
}

API int cuFuncSetAttribute(void* function, int attribute, int value) {
  log("{\"call\":\"attribute\",\"entry\":\"" + static_cast<Fake*>(function)->entry +
      "\",\"attribute\":" + std::to_string(attribute) + ",\"value\":" + std::to_string(value) + "}");
  return result("cuFuncSetAttribute");
}

API int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
  const auto known = parameters(*static_cast<Fake*>(function));
  if (index >= known.size()) return 1;
  *offset = known[index].first;
  *size = known[index].second;
  return 0;
}

API int cuMemAllocAsync(unsigned long long* address, size_t bytes, void* stream) {
  static unsigned long long next = 0x5C0000000000;
  *address = next;
  next += 1 << 20;
  log("{\"call\":\"allocate\",\"bytes\":" + std::to_string(bytes) +
      ",\"stream\":" + std::to_string(reinterpret_cast<size_t>(stream)) + "}");
  return result("cuMemAllocAsync");
}

API int cuMemFreeAsync(unsigned long long address, void* stream) {
  log("{\"call\":\"free\",\"address\":" + std::to_string(address) +
      ",\"stream\":" + std::to_string(reinterpret_cast<size_t>(stream)) + "}");
  return result("cuMemFreeAsync");
}

API int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void* stream, void** parameters, void** extra) {
  if (const int failed = result("cuLaunchKernel")) return failed;
  std::string bytes;
  if (parameters != nullptr || extra[0] != reinterpret_cast<void*>(1) || extra[2] != reinterpret_cast<void*>(2) ||
      extra[4] != nullptr) {
    return 1;
  }
  for (size_t i = 0; i < *static_cast<size_t*>(extra[3]); ++i) {
    char hex[3];
    std::snprintf(hex, sizeof(hex), "%02x", static_cast<unsigned char*>(extra[1])[i]);
    bytes += hex;
  }
  std::ostringstream line;
  line << "{\"call\":\"launch\",\"entry\":\"" << static_cast<Fake*>(function)->entry << "\",\"grid\":[" << gx << ","
       << gy << "," << gz << "],\"block\":[" << bx << "," << by << "," << bz << "],\"shared\":" << shared
       << ",\"stream\":" << reinterpret_cast<size_t>(stream) << ",\"parameters\":\"" << bytes << "\"}";
  log(line.str());
  return 0;
}
