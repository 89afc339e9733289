// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// The number of calls, the faults that tests ask for, and the rules that were broken.
#pragma once

#include <cuda.h>

#include <map>
#include <string>
#include <vector>

namespace fake_cuda {

class Findings {
 public:
  // Counts a call. Returns the error with which the call is to fail, or success.
  CUresult Enter(const std::string& symbol);
  void Fail(const std::string& symbol, int nth, CUresult result);
  // From now on calls of the symbol take so long, without the lock.
  void Delay(const std::string& symbol, int milliseconds) { delays_ms_[symbol] = milliseconds; }
  int delay_ms(const std::string& symbol) const;
  int calls(const std::string& symbol) const;
  void Violate(const std::string& text) { violations_.push_back(text); }
  std::string violations() const;
  void Reset();

 private:
  struct Fault {
    int nth;
    CUresult result;
  };
  std::map<std::string, int> calls_;
  std::map<std::string, Fault> faults_;
  std::map<std::string, int> delays_ms_;
  std::vector<std::string> violations_;
};

Findings& findings();

}  // namespace fake_cuda
