// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// A test with real processes: an owner hands a block to a peer over a socket and is killed.
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "memory/view.h"
#include "support.h"

namespace dwdp {
namespace {

// A message of one byte that can carry one descriptor.
struct Message {
  char byte = 0;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec io{&byte, 1};
  msghdr header{};

  Message() {
    header.msg_iov = &io;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
  }
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;
};

void Send(int socket, int fd) {
  Message message;
  cmsghdr* carrier = CMSG_FIRSTHDR(&message.header);
  carrier->cmsg_len = CMSG_LEN(sizeof(fd));
  carrier->cmsg_level = SOL_SOCKET;
  carrier->cmsg_type = SCM_RIGHTS;
  std::memcpy(CMSG_DATA(carrier), &fd, sizeof(fd));
  sendmsg(socket, &message.header, 0);
}

UniqueFd Receive(int socket) {
  Message message;
  if (recvmsg(socket, &message.header, MSG_CMSG_CLOEXEC) != 1) return UniqueFd();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message.header)), sizeof(fd));
  return UniqueFd(fd);
}

[[noreturn]] void Own(int socket, std::size_t num_bytes, std::size_t view_offset) {
  auto block = SealedBlock(Driver(), num_bytes, view_offset, 3);
  const UniqueFd fd = ExportFd(*block);
  Send(socket, fd.get());
  while (true) pause();
}

class Peer : public testing::TestWithParam<std::size_t> {};

TEST_P(Peer, ReadsAfterItsOwnerWasKilled) {
  const std::size_t num_bytes = GetParam();
  const std::size_t view_offset = kPage;
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
  const UniqueFd peer_end(ends[0]);
  const UniqueFd owner_end(ends[1]);
  const pid_t owner = fork();
  if (owner == 0) Own(owner_end.get(), num_bytes, view_offset);

  UniqueFd fd = Receive(peer_end.get());
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);

  auto driver = Driver();
  View view(driver, view_offset + num_bytes);
  view.MapPrivate(0, view_offset);
  view.MapBlock(view_offset, *Block::Import(driver, std::move(fd), num_bytes, view_offset));
  view.Finish();
  EXPECT_TRUE(Holds(view.address() + view_offset, num_bytes, 3));
}

INSTANTIATE_TEST_SUITE_P(SmallAndHuge, Peer,
                         testing::Values(4 * PageBytes(), 3 * kHugePageBytes + PageBytes()));

}  // namespace
}  // namespace dwdp
