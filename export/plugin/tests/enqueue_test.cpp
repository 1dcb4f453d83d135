// Calls as the CUDA driver sees them: libcuda is fake_cuda.cpp in the cases named driver_.
#include "dlfcn.h"
#include "fake_cuda.h"
#include "fixtures.h"

namespace {

// The stand-in for libcuda, which is on LD_LIBRARY_PATH in these cases alone.
FakeCuda& fakeDriver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(library != nullptr);
  const auto state = reinterpret_cast<FakeCudaState>(dlsym(library, "fakeCuda"));
  CHECK(state != nullptr);
  FakeCuda& fake = *state();
  fake.hasContext = true;
  fake.computeCapabilityMajor = 9;
  fake.computeCapabilityMinor = 0;
  fake.launches = 0;
  fake.failLaunchWith = 0;
  return fake;
}

TEST(without_a_driver_the_plugin_loads_and_enqueue_says_why_it_cannot) {
  setLoggerFinder(&loggerFinder());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
  CHECK(logged("no NVIDIA driver"));
  setLoggerFinder(nullptr);
}

TEST(enqueue_before_shapes_are_known_is_an_error) {
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
}

TEST(driver_enqueue_launches_in_order_on_the_stream_with_packed_arguments) {
  FakeCuda& driver = fakeDriver();
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = const_cast<void*>(pointer(0xA000));
  void* workspace = const_cast<void*>(pointer(0x100000));
  auto* stream = reinterpret_cast<cudaStream_t>(0x5EA);
  const auto enqueue = [&] {
    return runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                   workspace, stream);
  };
  CHECK_EQUAL(enqueue(), 0);
  CHECK_EQUAL(driver.launches, 2);
  CHECK_EQUAL(std::string(driver.launch[0].kernel), "key_tiles_fp16");
  CHECK_EQUAL(std::string(driver.launch[1].kernel), "attention_fp16");
  CHECK(driver.launch[1].stream == stream);
  CHECK_EQUAL(driver.launch[1].block[0], 128U);
  CHECK_EQUAL(driver.launch[1].sharedBytes, 65536U);
  CHECK_EQUAL(driver.sharedBytesAllowed, 65536);
  CHECK_EQUAL(driver.launch[1].grid[0], 6U);
  // `query` first, `scale` last but for Triton's two scratch pointers, which are null.
  CHECK_EQUAL(driver.launch[1].arguments[0], 0x1000U);
  CHECK_EQUAL(driver.launch[1].arguments[3], 0xA000U);
  const int32_t last = driver.launch[1].argumentCount - 1;
  CHECK_EQUAL(driver.launch[1].arguments[last], 0U);
  CHECK_EQUAL(driver.launch[1].arguments[last - 1], 0U);
  float scale = 0.0F;
  std::memcpy(&scale, &driver.launch[1].arguments[last - 2], sizeof(scale));
  CHECK_EQUAL(scale, 0.125F);
  const int32_t loaded = driver.librariesLoaded;
  CHECK_EQUAL(enqueue(), 0);
  CHECK_EQUAL(driver.librariesLoaded, loaded);  // loaded once
}

TEST(driver_zeros_are_written_before_the_launch) {
  const FakeCuda& driver = fakeDriver();
  Attributes attributes;
  attributes.range = "dot";
  const PluginPointer plugin = create(attributes);
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = const_cast<void*>(pointer(0xA000));
  void* workspace = const_cast<void*>(pointer(0x100000));
  CHECK_EQUAL(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                      workspace, nullptr),
              0);
  CHECK(driver.cleared == workspace);
  CHECK_EQUAL(driver.clearedCount, 70);
  CHECK_EQUAL(driver.launches, 1);
}

TEST(driver_a_gpu_without_code_is_named) {
  FakeCuda& driver = fakeDriver();
  driver.computeCapabilityMajor = 7;
  driver.computeCapabilityMinor = 5;
  setLoggerFinder(&loggerFinder());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  CHECK(runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output, nullptr,
                                nullptr) != 0);
  CHECK(logged("sm_75"));
  CHECK_EQUAL(driver.launches, 0);
  setLoggerFinder(nullptr);
}

TEST(driver_errors_carry_the_drivers_reason) {
  FakeCuda& driver = fakeDriver();
  driver.failLaunchWith = 700;
  setLoggerFinder(&loggerFinder());
  const PluginPointer plugin = create(Attributes{});
  const auto inputs = inputsOf("gaussian", Shape{}, DataType::kHALF, false);
  CHECK_EQUAL(onShapeChange(plugin, inputs), 0);
  FakeTensors fake;
  void* output = nullptr;
  const auto enqueue = [&] {
    return runtime(plugin).enqueue(inputs.data(), inputs.data(), fake.inputs.data(), &output,
                                   nullptr, nullptr);
  };
  CHECK(enqueue() != 0);
  CHECK(logged("an error of the fake driver (700)"));
  driver.hasContext = false;
  CHECK(enqueue() != 0);
  CHECK(logged("no current CUDA device"));
  setLoggerFinder(nullptr);
}

}  // namespace
