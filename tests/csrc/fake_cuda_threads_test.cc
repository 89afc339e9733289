// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Rules of the fake CUDA driver about threads, captures and work that hangs. Each is broken once.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "fake_cuda_fixture.h"

namespace dwdp {
namespace {

using ExchangeMode = PFN_cuThreadExchangeStreamCaptureMode_v10010;

constexpr int kGlobal = CU_STREAM_CAPTURE_MODE_GLOBAL;
constexpr int kThreadLocal = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
constexpr int kRelaxed = CU_STREAM_CAPTURE_MODE_RELAXED;

class FakeThreads : public FakeCuda {
 protected:
  FakeThreads() { EXPECT_EQ(api.cuEventRecord(event, stream), CUDA_SUCCESS); }

  static CUresult OnAnotherThread(const std::function<CUresult()>& call) {
    CUresult result = CUDA_SUCCESS;
    std::thread([&] { result = call(); }).join();
    return result;
  }

  CUresult QueryElsewhere(int own_mode = kGlobal) {
    return OnAnotherThread([&] {
      auto mode = static_cast<CUstreamCaptureMode>(own_mode);
      Find<ExchangeMode>("cuThreadExchangeStreamCaptureMode", 10010)(&mode);
      const CUresult result = api.cuEventQuery(event);
      return result == CUDA_ERROR_NOT_READY ? CUDA_SUCCESS : result;
    });
  }

  // Ends the capture, and returns whether that gave a graph.
  bool EndCapture() {
    void* graph = fake_cuda_end_capture(stream);
    fake_cuda_destroy_graph(graph);
    return graph != nullptr;
  }
};

TEST_F(FakeThreads, GlobalCaptureIsBrokenByAQueryOfAnyThread) {
  fake_cuda_begin_capture(stream, kGlobal);
  EXPECT_EQ(QueryElsewhere(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_FALSE(EndCapture());
}

TEST_F(FakeThreads, GlobalCaptureIsBrokenByAnAllocationOfAnyThread) {
  fake_cuda_begin_capture(stream, kGlobal);
  const CUresult result = OnAnotherThread([&] {
    CUcontext popped = nullptr;
    CUmemGenericAllocationHandle handle = 0;
    api.cuCtxPushCurrent(contexts[0]);
    const CUresult made = Create(&handle);
    api.cuCtxPopCurrent(&popped);
    return made;
  });
  EXPECT_EQ(result, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_FALSE(EndCapture());
}

TEST_F(FakeThreads, ThreadThatSaysItIsRelaxedBreaksNoCapture) {
  fake_cuda_begin_capture(stream, kGlobal);
  EXPECT_EQ(QueryElsewhere(kRelaxed), CUDA_SUCCESS);
  EXPECT_TRUE(EndCapture());
}

TEST_F(FakeThreads, ThreadLocalCaptureIsBrokenByItsOwnThreadAlone) {
  fake_cuda_begin_capture(stream, kThreadLocal);
  EXPECT_EQ(QueryElsewhere(), CUDA_SUCCESS);
  EXPECT_TRUE(EndCapture());
  fake_cuda_begin_capture(stream, kThreadLocal);
  EXPECT_EQ(api.cuEventQuery(event), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_FALSE(EndCapture());
}

TEST_F(FakeThreads, RelaxedCaptureStandsQueriesOfItsOwnThread) {
  fake_cuda_begin_capture(stream, kRelaxed);
  EXPECT_NE(api.cuEventQuery(event), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EXPECT_TRUE(EndCapture());
}

TEST_F(FakeThreads, CaptureEndsOnTheThreadThatBeganIt) {
  fake_cuda_begin_capture(stream, kThreadLocal);
  void* graph = &graph;
  std::thread([&] { graph = fake_cuda_end_capture(stream); }).join();
  EXPECT_EQ(graph, nullptr);
  EXPECT_TRUE(EndCapture());
}

TEST_F(FakeThreads, ModeOfAThreadIsHandedOut) {
  const auto exchange = Find<ExchangeMode>("cuThreadExchangeStreamCaptureMode", 10010);
  auto mode = CU_STREAM_CAPTURE_MODE_RELAXED;
  EXPECT_EQ(exchange(&mode), CUDA_SUCCESS);
  EXPECT_EQ(mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
  EXPECT_EQ(exchange(&mode), CUDA_SUCCESS);
  EXPECT_EQ(mode, CU_STREAM_CAPTURE_MODE_RELAXED);
}

TEST_F(FakeThreads, CopyThatHangsHoldsUpAllThatComesAfterIt) {
  auto* other = static_cast<CUstream>(fake_cuda_make_stream(0));
  fake_cuda_hang("cuMemcpyAsync", 2);
  char first = 1, second = 1;
  const auto to = [](char* place) { return reinterpret_cast<CUdeviceptr>(place); };
  EXPECT_EQ(api.cuMemcpyAsync(to(&first), page, 1, stream), CUDA_SUCCESS);
  EXPECT_EQ(api.cuMemcpyAsync(to(&second), page, 1, stream), CUDA_SUCCESS);
  EXPECT_EQ(api.cuEventRecord(event, stream), CUDA_SUCCESS);
  EXPECT_EQ(api.cuStreamWaitEvent(other, event, 0), CUDA_SUCCESS);
  EXPECT_EQ(fake_cuda_fill(other, page, 1, 7), CUDA_SUCCESS);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(api.cuEventQuery(event), CUDA_ERROR_NOT_READY);
  EXPECT_EQ(first, 0) << "it came before";
  EXPECT_EQ(second, 1);
  fake_cuda_end_hangs();
  EXPECT_EQ(api.cuCtxSynchronize(), CUDA_SUCCESS);
  EXPECT_EQ(second, 0) << "not what was written after it";
  fake_cuda_destroy_stream(other);
}

TEST_F(FakeThreads, ThreadThatWaitsHoldsUpNoOther) {
  fake_cuda_hang("a kernel's write", 1);
  fake_cuda_fill(stream, page, 1, 7);
  std::atomic<bool> is_over = false;
  std::thread waiting([&] {
    EXPECT_EQ(api.cuStreamSynchronize(stream), CUDA_SUCCESS);
    is_over = true;
  });
  while (fake_cuda_calls("cuStreamSynchronize") == 0) std::this_thread::yield();
  EXPECT_EQ(api.cuMemcpyAsync(page, other_page, 8, stream), CUDA_SUCCESS);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(is_over);
  fake_cuda_end_hangs();
  waiting.join();
}

TEST_F(FakeThreads, StreamThatAThreadWaitsForStays) {
  auto* waited_for = static_cast<CUstream>(fake_cuda_make_stream(0));
  fake_cuda_hang("a kernel's write", 1);
  fake_cuda_fill(waited_for, page, 1, 7);
  std::thread waiting([&] { EXPECT_EQ(api.cuStreamSynchronize(waited_for), CUDA_SUCCESS); });
  while (fake_cuda_calls("cuStreamSynchronize") == 0) std::this_thread::yield();
  EXPECT_NE(api.cuStreamDestroy(waited_for), CUDA_SUCCESS);
  EXPECT_EQ(Violations(), "cuStreamDestroy of a stream that another thread waits for\n");
  fake_cuda_end_hangs();
  waiting.join();
  EXPECT_EQ(api.cuStreamDestroy(waited_for), CUDA_SUCCESS);
}

}  // namespace
}  // namespace dwdp
