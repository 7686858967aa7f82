// A device for tests whose memory is the host's under another name: each operation runs the CPU's kernel on the same
// bytes. What CUDA refuses is refused: operands of two devices, pinning of what is not the host's.
//
// Built by card.py against the torch that is installed; registered as torch's PrivateUse1.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

namespace {

constexpr auto KIND = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);
const c10::Device DEVICE(KIND, 0);

// One device and one stream, of which nothing need be waited for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream given) const override { return given; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {memory, memory, &std::free, DEVICE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
DeviceMemory memory;
REGISTER_ALLOCATOR(KIND, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = at::detail::getDefaultCPUGenerator();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto grown = memory.allocate(bytes);
    if (impl->data() && bytes) std::memcpy(grown.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(grown));
    impl->set_nbytes(bytes);
  }
};
const Hooks* const hooks = [] {
  auto* made = new Hooks;
  at::RegisterPrivateUse1HooksInterface(made);
  return made;
}();

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == KIND; }

// The same bytes as a tensor of the CPU, which keeps the storage alive.
at::Tensor host(const at::Tensor& tensor) {
  if (!is_ours(tensor)) return tensor;
  const auto storage = tensor.storage();
  c10::DataPtr bytes(storage.mutable_data(), new c10::Storage(storage),
                     [](void* kept) { delete static_cast<c10::Storage*>(kept); }, at::kCPU);
  auto impl = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), storage.nbytes(),
                                                    std::move(bytes), c10::GetCPUAllocator(), true);
  at::Tensor out = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(impl), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return out;
}

at::Tensor on_device(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_cpu()) return tensor;
  at::Tensor out = at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), &memory, KEYS, tensor.scalar_type());
  host(out).copy_(tensor);
  return out;
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "only dense CPU tensors can be pinned");
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool> pinned) {
  TORCH_CHECK(!pinned.value_or(false), "only dense CPU tensors can be pinned");
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           KEYS, c10::dtype_or_default(dtype));
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  self.unsafeGetTensorImpl()->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t bytes = (self.numel() + self.storage_offset()) * self.itemsize();
  if (self.storage().nbytes() < bytes) hooks->resizePrivateUse1Bytes(self.storage(), bytes);
  return self;
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  host(target).copy_(host(source));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  if (target.sizes() != source.sizes()) at::native::resize_output(target, source.sizes());
  host(target).copy_(host(source));
  return target;
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
      offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                        c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                              offset.guard_int(__FILE__, __LINE__));
  return self;
}

// One call of the CPU's kernel: which of its tensors are ours, and their bytes as the host's.
class Call {
 public:
  explicit Call(const c10::FunctionSchema& schema)
      : name_(schema.name()), indexes_(name_.rfind("aten::index", 0) == 0 || name_ == "aten::_index_put_impl_") {}

  // As on CUDA: beside the device's tensors a host tensor may be a single number, or an index.
  at::Tensor to_host(const at::Tensor& tensor, bool in_list) {
    if (!is_ours(tensor)) {
      TORCH_CHECK(!tensor.defined() || tensor.dim() == 0 || (indexes_ && in_list),
                  "Expected all tensors to be on the same device: ", name_, " was given a host tensor of sizes ",
                  tensor.sizes());
      return tensor;
    }
    ours_.push_back(tensor);
    hosts_.push_back(host(tensor));
    return hosts_.back();
  }

  // Kernels that write into `out` may have given it another size.
  void take_over_sizes() {
    for (size_t n = 0; n < ours_.size(); ++n) {
      const bool is_resized = ours_[n].sizes() != hosts_[n].sizes() || ours_[n].strides() != hosts_[n].strides();
      if (is_resized) resize_(ours_[n], c10::fromIntArrayRefSlow(hosts_[n].sizes()), std::nullopt);
      if (is_resized || hosts_[n].storage().data() != ours_[n].storage().data()) host(ours_[n]).copy_(hosts_[n]);
    }
  }

  // What was given, a view of it, or a new tensor.
  at::Tensor to_device(const at::Tensor& result) const {
    for (size_t n = 0; result.defined() && n < hosts_.size(); ++n) {
      if (result.is_same(hosts_[n])) return ours_[n];
      if (result.storage().nbytes() && result.storage().data() == hosts_[n].storage().data())
        return at::as_strided(ours_[n], result.sizes(), result.strides(), result.storage_offset());
    }
    return on_device(result);
  }

 private:
  const std::string name_;
  const bool indexes_;
  std::vector<at::Tensor> ours_, hosts_;
};

std::atomic<int64_t> num_operations{0};

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++num_operations;
  const auto& schema = op.schema();
  Call call(schema);
  const size_t first = stack->size() - schema.arguments().size();
  for (size_t n = first; n < stack->size(); ++n) {
    auto& value = (*stack)[n];
    if (value.isTensor()) {
      value = call.to_host(value.toTensor(), false);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(call.to_host(tensor, true));
      value = c10::IValue(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> tensor : value.toOptionalTensorList())
        list.push_back(tensor ? std::optional(call.to_host(*tensor, true)) : std::nullopt);
      value = c10::IValue(list);
    } else if (value.isDevice()) {
      value = c10::IValue(c10::Device(at::kCPU));
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.take_over_sizes();
  for (size_t n = stack->size() - schema.returns().size(); n < stack->size(); ++n) {
    auto& value = (*stack)[n];
    if (value.isTensor()) {
      value = call.to_device(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(call.to_device(tensor));
      value = c10::IValue(list);
    }
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("resize_", resize_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}
TORCH_LIBRARY(standin, library) {
  library.def("host(Tensor tensor) -> Tensor", host);
  library.def("num_operations() -> int", [] { return num_operations.load(); });
}
