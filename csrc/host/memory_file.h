// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Memory files (memfd) and their seals: the kernel's promises that pages shared between processes
// neither vanish (SHRINK, else SIGBUS) nor change (WRITE).
#pragma once

#include <cstddef>
#include <string>

#include "base/unique_fd.h"

namespace dwdp {

// A new file of zeroes whose size is sealed.
UniqueFd CreateMemoryFile(const std::string& name, std::size_t num_bytes);

// Seals contents and seals; no writable mapping may be left. False: this kernel can't.
bool SealContents(int fd);

// A second open of the file, without the right to write: unlike a duplicate, its mappings don't
// hinder sealing, and kernels that refuse read-only maps of sealed files through O_RDWR take it.
UniqueFd ReopenReadOnly(int fd);

struct ReceivedFile {
  UniqueFd fd;  // read-only
  bool is_write_sealed;
};

// Checks a peer's file before it is mapped. Takes the descriptor; refusing closes it.
ReceivedFile AcceptMemoryFile(UniqueFd fd, std::size_t num_bytes, bool require_write_seal);

}  // namespace dwdp
