// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The Python bindings of the core. Addresses are passed as integers, descriptors as ints that the
// receiver owns, fabric handles as bytes, tensors by DLPack. Functions that call a driver release
// the GIL, so that threads which watch a rank speak even if the call hangs. Blocks, views and a
// driver's list of warnings have locks of their own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "base/error.h"
#include "copy/chosen_experts.h"
#include "cuda/driver.h"
#include "cuda/stream/copier.h"
#include "host/copier.h"
#include "host/driver.h"
#include "memory/block.h"
#include "memory/view.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace dwdp {
namespace {

using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

const void* Pointer(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }

FabricHandle ToFabricHandle(const nb::bytes& bytes) {
  FabricHandle handle;
  Require(bytes.size() == handle.size(),
          "expected a fabric handle of " + std::to_string(handle.size()) + " bytes, got " +
              std::to_string(bytes.size()) + "; start every rank with one version of vllm-dwdp");
  std::memcpy(handle.data(), bytes.data(), handle.size());
  return handle;
}

// The tensor shares ownership of the view, so the memory lives as long as the tensor.
Bytes BytesTensor(const std::shared_ptr<View>& view) {
  Require(view->is_finished(), "expected a finished view, got an open one; finish it first");
  auto* share = new std::shared_ptr<View>(view);
  nb::capsule owner(share, [](void* p) noexcept { delete static_cast<std::shared_ptr<View>*>(p); });
  const std::size_t shape[] = {view->num_bytes()};
  const bool is_on_gpu = view->gpu() != MemoryDriver::kNoGpu;
  return Bytes(view->address(), 1, shape, owner, nullptr, nb::dtype<std::uint8_t>(),
               is_on_gpu ? nb::device::cuda::value : nb::device::cpu::value,
               is_on_gpu ? view->gpu() : 0);
}

void BindDriver(nb::module_& module) {
  nb::enum_<HandleType>(module, "HandleType")
      .value("FILE_DESCRIPTOR", HandleType::kFileDescriptor)
      .value("FABRIC", HandleType::kFabric);
  nb::class_<MemoryDriver>(module, "MemoryDriver")
      .def_prop_ro("kind", &MemoryDriver::kind)
      .def_prop_ro("granularity", &MemoryDriver::granularity)
      .def_prop_ro("obstacles", &MemoryDriver::obstacles)
      .def_prop_ro("warnings", &MemoryDriver::warnings)
      .def(
          "copy",
          [](MemoryDriver& driver, std::uintptr_t destination, std::uintptr_t source,
             std::size_t num_bytes) {
            driver.Copy(reinterpret_cast<void*>(destination), Pointer(source), num_bytes);
          },
          "destination_address"_a, "source_address"_a, "num_bytes"_a, ReleaseGil())
      .def("create_block", &Block::Create, "num_bytes"_a, "view_offset"_a = 0, nb::kw_only(),
           "on_host"_a = false, ReleaseGil())
      .def(
          "import_block",
          [](std::shared_ptr<MemoryDriver> driver, int fd, std::size_t num_bytes,
             std::size_t view_offset) {
            return Block::Import(std::move(driver), UniqueFd(fd), num_bytes, view_offset);
          },
          "handle"_a, "num_bytes"_a, "view_offset"_a = 0, ReleaseGil())
      .def(
          "import_block",
          [](std::shared_ptr<MemoryDriver> driver, const nb::bytes& handle, std::size_t num_bytes,
             std::size_t view_offset) {
            const FabricHandle fabric = ToFabricHandle(handle);
            const nb::gil_scoped_release released;
            return Block::Import(std::move(driver), fabric, num_bytes, view_offset);
          },
          "handle"_a, "num_bytes"_a, "view_offset"_a = 0)
      .def(
          "reserve_view",
          [](std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes) {
            return std::make_shared<View>(std::move(driver), num_bytes);
          },
          "num_bytes"_a, ReleaseGil())
      .def(
          "create_slot_page",
          [](std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes, std::size_t view_offset) {
            return std::make_shared<SlotPage>(std::move(driver), num_bytes, view_offset);
          },
          "num_bytes"_a, "view_offset"_a = 0, ReleaseGil())
      .def(
          "create_scratch_page",
          [](std::shared_ptr<MemoryDriver> driver, std::size_t num_bytes) {
            return std::make_shared<SlotPage>(std::move(driver), num_bytes, 0,
                                              MemoryUse::kScratchPage);
          },
          "num_bytes"_a, ReleaseGil());
  nb::class_<HostDriver, MemoryDriver>(module, "HostDriver")
      .def(nb::new_([](std::string name, int numa_node, bool huge_pages, bool require_write_seal) {
             return std::make_shared<HostDriver>(
                 HostOptions{std::move(name), numa_node, huge_pages, require_write_seal});
           }),
           nb::kw_only(), "name"_a = "dwdp", "numa_node"_a = -1, "huge_pages"_a = true,
           "require_write_seal"_a = true);
  nb::class_<CudaDriver, MemoryDriver>(module, "CudaDriver")
      .def(nb::new_([](int gpu, const std::string& library) {
             return std::make_shared<CudaDriver>(gpu, library);
           }),
           "gpu"_a, "library"_a = kCudaLibrary);
}

ShareableHandle ExportWithoutGil(const Block& block, HandleType type) {
  const nb::gil_scoped_release released;
  return block.Export(type);
}

std::variant<int, nb::bytes> ExportHandle(const Block& block, HandleType type) {
  ShareableHandle handle = ExportWithoutGil(block, type);
  if (auto* fd = std::get_if<UniqueFd>(&handle)) return fd->release();
  const auto& fabric = std::get<FabricHandle>(handle);
  return nb::bytes(fabric.data(), fabric.size());
}

void BindBlock(nb::module_& module) {
  nb::class_<Block>(module, "Block")
      .def_prop_ro("num_bytes", &Block::num_bytes)
      .def_prop_ro("is_sealed", &Block::is_sealed)
      .def_prop_ro("is_write_sealed", &Block::is_write_sealed)
      .def(
          "fill",
          [](Block& block, std::size_t offset, std::uintptr_t source, std::size_t num_bytes) {
            block.Fill(offset, Pointer(source), num_bytes);
          },
          "offset"_a, "source_address"_a, "num_bytes"_a, ReleaseGil())
      .def("seal", &Block::Seal, ReleaseGil())
      .def("export_handle", &ExportHandle, "type"_a);
}

void BindView(nb::module_& module) {
  nb::class_<View>(module, "View")
      .def_prop_ro("address",
                   [](const View& v) { return reinterpret_cast<std::uintptr_t>(v.address()); })
      .def_prop_ro("num_bytes", &View::num_bytes)
      .def_prop_ro("num_maps", &View::num_maps)
      .def_prop_ro("is_finished", &View::is_finished)
      .def("map_block", &View::MapBlock, "offset"_a, "block"_a, ReleaseGil())
      .def("map_slot_page", &View::MapSlotPage, "offset"_a, "page"_a, ReleaseGil())
      .def("map_private", &View::MapPrivate, "offset"_a, "num_bytes"_a, ReleaseGil())
      .def(
          "fill_private",
          [](View& view, std::size_t offset, std::uintptr_t source, std::size_t num_bytes) {
            view.FillPrivate(offset, Pointer(source), num_bytes);
          },
          "offset"_a, "source_address"_a, "num_bytes"_a, ReleaseGil())
      .def("finish", &View::Finish, ReleaseGil())
      .def("bytes_tensor", &BytesTensor);
}

void BindSlotPage(nb::module_& module) {
  nb::class_<SlotPage>(module, "SlotPage")
      .def_prop_ro("address",
                   [](const SlotPage& p) { return reinterpret_cast<std::uintptr_t>(p.address()); })
      .def_prop_ro("num_bytes", &SlotPage::num_bytes);
}

// (destination address, source address, number of bytes).
using CopyTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::size_t>;

Copy CopyOf(std::uintptr_t destination, std::uintptr_t source, std::size_t num_bytes) {
  return {reinterpret_cast<std::byte*>(destination), static_cast<const std::byte*>(Pointer(source)),
          num_bytes};
}

CopyRound Round(const std::vector<CopyTuple>& tuples) {
  CopyRound round;
  for (const auto& [to, from, num_bytes] : tuples) round.Add(CopyOf(to, from, num_bytes));
  return round;
}

Copier::Ticket Submit(Copier& copier, std::shared_ptr<CopyList> list, Copier::Stream stream) {
  return copier.Submit(std::move(list), stream);
}

void BindCopier(nb::module_& module) {
  nb::class_<CopyList>(module, "CopyList")
      .def(nb::new_([](const std::vector<std::vector<CopyTuple>>& rounds,
                       const std::vector<std::shared_ptr<SlotPage>>& pages,
                       const std::vector<std::shared_ptr<View>>& views, int layer,
                       std::vector<int> peers) {
             auto list = std::make_shared<CopyList>();
             for (const auto& round : rounds) list->rounds.push_back(Round(round));
             list->memory.insert(list->memory.end(), pages.begin(), pages.end());
             list->memory.insert(list->memory.end(), views.begin(), views.end());
             list->layer = layer;
             Require(peers.empty() || peers.size() == list->num_copies(),
                     "expected the peers of " + std::to_string(list->num_copies()) +
                         " copies, got " + std::to_string(peers.size()));
             list->peers = std::move(peers);
             return list;
           }),
           "rounds"_a, "pages"_a = std::vector<std::shared_ptr<SlotPage>>(),
           "views"_a = std::vector<std::shared_ptr<View>>(), nb::kw_only(),
           "layer"_a = CopyList::kNoLayer, "peers"_a = std::vector<int>());
  nb::class_<CopySpan>(module, "CopySpan")
      .def_ro("ticket", &CopySpan::ticket)
      .def_ro("layer", &CopySpan::layer)
      .def_ro("peer", &CopySpan::peer)
      .def_ro("num_bytes", &CopySpan::num_bytes)
      .def_ro("num_copies", &CopySpan::num_copies)
      .def_ro("begin_ns", &CopySpan::begin_ns)
      .def_ro("end_ns", &CopySpan::end_ns)
      .def_ro("busy_ns", &CopySpan::busy_ns);
  nb::class_<Recording>(module, "CopyRecording")
      .def_ro("marks_ns", &Recording::marks_ns)
      .def_ro("copies", &Recording::copies)
      .def_ro("num_dropped_bytes", &Recording::num_dropped_bytes);
  nb::class_<Copier::Progress>(module, "CopyProgress")
      .def_ro("ticket", &Copier::Progress::ticket)
      .def_ro("layer", &Copier::Progress::layer)
      .def_ro("has_begun", &Copier::Progress::has_begun)
      .def_ro("num_ended", &Copier::Progress::num_ended);
  nb::class_<Copier>(module, "Copier")
      .def("submit", &Submit, "copies"_a, "stream"_a = Copier::kCpu)
      .def("cancel", &Copier::Cancel, "ticket"_a)
      .def("wait", &Copier::Wait, "ticket"_a, "stream"_a = Copier::kCpu, ReleaseGil())
      .def("is_done", &Copier::IsDone, "ticket"_a)
      .def("drain", &Copier::Drain, ReleaseGil())
      .def("first_under_way", &Copier::FirstUnderWay, ReleaseGil())
      .def(
          "start_recording",
          [](Copier& copier, std::size_t max_marks, std::size_t max_spans) {
            copier.StartRecording({max_marks, max_spans});
          },
          nb::kw_only(), "max_marks"_a, "max_spans"_a, ReleaseGil())
      .def("mark", &Copier::Mark, "stream"_a = Copier::kCpu)
      .def("end_recording", &Copier::EndRecording)
      .def("take_recording", &Copier::TakeRecording, ReleaseGil());
  nb::class_<HostCopier, Copier>(module, "HostCopier")
      .def(nb::init<std::size_t, const std::vector<int>&>(), nb::kw_only(), "num_threads"_a = 1,
           "cores"_a = std::vector<int>());
  nb::class_<CudaCopier, Copier>(module, "CudaCopier")
      .def(
          "__init__",
          [](CudaCopier* self, const CudaDriver& driver, bool use_batches, bool prefer_overlap,
             bool high_priority) {
            new (self) CudaCopier(driver.device(), {use_batches, prefer_overlap, high_priority});
          },
          "driver"_a, nb::kw_only(), "use_batches"_a = false, "prefer_overlap"_a = true,
          "high_priority"_a = true)
      .def("submit", &Submit, "copies"_a, "stream"_a = Copier::kCpu, ReleaseGil())
      .def_prop_ro("uses_batches", &CudaCopier::uses_batches);
}

void BindChosenExperts(nb::module_& module) {
  // (index of the peer, destination address, source address, number of bytes).
  using PeerCopyTuple = std::tuple<std::size_t, std::uintptr_t, std::uintptr_t, std::size_t>;
  nb::class_<ChosenExperts>(module, "ChosenExperts")
      .def(
          "__init__",
          [](ChosenExperts* self, std::shared_ptr<Copier> copier,
             const std::vector<std::vector<PeerCopyTuple>>& experts, std::size_t num_peers) {
            std::vector<ChosenExperts::Expert> made;
            for (const auto& copies : experts) {
              auto& expert = made.emplace_back();
              for (const auto& [peer, to, from, num_bytes] : copies) {
                expert.push_back({peer, CopyOf(to, from, num_bytes)});
              }
            }
            new (self) ChosenExperts(std::move(copier), std::move(made), num_peers);
          },
          "copier"_a, "experts"_a, "num_peers"_a)
      .def(
          "fetch",
          [](ChosenExperts& self, std::uintptr_t ids, std::size_t num_ids, std::size_t id_bytes) {
            Require(id_bytes == 4 || id_bytes == 8,
                    "expected expert ids of 4 or 8 bytes, got " + std::to_string(id_bytes));
            const auto fetched =
                id_bytes == 4 ? self.Fetch(static_cast<const std::int32_t*>(Pointer(ids)), num_ids)
                              : self.Fetch(static_cast<const std::int64_t*>(Pointer(ids)), num_ids);
            return std::make_tuple(fetched.bytes_by_peer, fetched.num_copies, fetched.num_hits);
          },
          "ids_address"_a, "num_ids"_a, "id_bytes"_a, ReleaseGil())
      .def("forget", &ChosenExperts::Forget);
}

}  // namespace
}  // namespace dwdp

NB_MODULE(_core, module) {
  nb::set_leak_warnings(false);  // views live as long as the model, which vLLM keeps to the end
  const nb::object driver_error =
      nb::exception<dwdp::DriverError>(module, "DriverError", PyExc_RuntimeError);
  nb::exception<dwdp::OutOfResources>(module, "OutOfResources", driver_error);
  dwdp::BindDriver(module);
  dwdp::BindBlock(module);
  dwdp::BindSlotPage(module);
  dwdp::BindView(module);
  dwdp::BindCopier(module);
  dwdp::BindChosenExperts(module);
}
