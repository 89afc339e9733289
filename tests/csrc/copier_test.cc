// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "host/copier.h"

#include <algorithm>
#include <set>

#include "copy/chosen_experts.h"
#include "memory/view.h"
#include "support.h"

namespace dwdp {
namespace {

using Bytes = std::vector<std::byte>;

std::shared_ptr<const CopyList> InRounds(const std::vector<std::vector<Copy>>& rounds) {
  return std::make_shared<const CopyList>(rounds);
}

class HostCopierTest : public testing::TestWithParam<std::size_t> {};

TEST_P(HostCopierTest, CopiesEverythingBeforeItsTicketIsDone) {
  HostCopier copier(GetParam(), {});
  const Bytes source = Pattern(1 << 20, 1);
  for (int repeat = 0; repeat < 20; ++repeat) {
    Bytes destination(source.size());
    std::vector<std::vector<Copy>> rounds(8);
    const std::size_t part = source.size() / 64;
    for (std::size_t i = 0; i < 64; ++i) {
      rounds[i / 8].push_back({destination.data() + i * part, source.data() + i * part, part});
    }
    const auto ticket = copier.Submit(InRounds(rounds), Copier::kCpu);
    copier.Wait(ticket, Copier::kCpu);
    EXPECT_TRUE(copier.IsDone(ticket));
    EXPECT_EQ(destination, source);
  }
}

TEST_P(HostCopierTest, RoundsAndListsRunInOrder) {
  HostCopier copier(GetParam(), {});
  Bytes first = Pattern(1 << 18, 1), second = Pattern(1 << 18, 2), destination(1 << 18);
  const Copy a{destination.data(), first.data(), first.size()};
  const Copy b{destination.data(), second.data(), second.size()};
  for (int repeat = 0; repeat < 50; ++repeat) {
    copier.Wait(copier.Submit(InRounds({{b}, {a}, {b}}), Copier::kCpu), Copier::kCpu);
    EXPECT_EQ(destination, second);
    copier.Submit(InRounds({{b}}), Copier::kCpu);
    copier.Wait(copier.Submit(InRounds({{a}}), Copier::kCpu), Copier::kCpu);
    EXPECT_EQ(destination, first);
  }
}

TEST_P(HostCopierTest, MemoryStaysUntilTheCopiesHaveEnded) {
  HostCopier copier(GetParam(), {});
  for (int repeat = 0; repeat < 20; ++repeat) {
    const auto source = std::make_shared<const Bytes>(Pattern(1 << 20, 1));
    auto destination = std::make_shared<Bytes>(source->size());
    const std::weak_ptr<Bytes> seen = destination;
    std::vector<std::shared_ptr<const void>> memory = {source, destination};
    auto list = std::make_shared<const CopyList>(
        std::vector<std::vector<Copy>>{{{destination->data(), source->data(), source->size()}}},
        std::move(memory));
    destination.reset();  // AddressSanitizer reports a copy to freed memory
    const auto ticket = copier.Submit(std::move(list), Copier::kCpu);
    copier.Wait(ticket, Copier::kCpu);
    EXPECT_TRUE(seen.expired()) << "an ended list holds its memory";
  }
}

TEST_P(HostCopierTest, EmptyListsAndRoundsAreDone) {
  HostCopier copier(GetParam(), {});
  copier.Wait(copier.Submit(InRounds({}), Copier::kCpu), Copier::kCpu);
  Bytes destination(1), source = Pattern(1, 9);
  copier.Wait(
      copier.Submit(InRounds({{}, {{destination.data(), source.data(), 1}}, {}}), Copier::kCpu),
      Copier::kCpu);
  EXPECT_EQ(destination, source);
}

TEST_P(HostCopierTest, CancelledListEndsAndLaterOnesRun) {
  HostCopier copier(GetParam(), {});
  const Bytes source = Pattern(1 << 20, 1);
  Bytes slow(source.size()), destination(source.size());
  std::vector<std::vector<Copy>> rounds(1000, {{slow.data(), source.data(), source.size()}});
  const auto cancelled = copier.Submit(InRounds(rounds), Copier::kCpu);
  const auto waiting = copier.Submit(InRounds(rounds), Copier::kCpu);
  const auto kept =
      copier.Submit(InRounds({{{destination.data(), source.data(), source.size()}}}), Copier::kCpu);
  copier.Cancel(waiting);
  EXPECT_TRUE(copier.IsDone(waiting)) << "it had not begun";
  copier.Wait(waiting, Copier::kCpu);
  EXPECT_FALSE(copier.IsDone(cancelled));
  copier.Cancel(cancelled);
  copier.Wait(kept, Copier::kCpu);
  EXPECT_TRUE(copier.IsDone(cancelled) && copier.IsDone(waiting));
  EXPECT_EQ(destination, source);
}

TEST_P(HostCopierTest, SaysHowFarTheFirstListHasCome) {
  HostCopier copier(GetParam(), {});
  EXPECT_FALSE(copier.FirstUnderWay());
  const Bytes source = Pattern(1 << 20, 1);
  Bytes destination(source.size());
  auto list = std::make_shared<CopyList>(
      std::vector<std::vector<Copy>>(200, {{destination.data(), source.data(), source.size()}}));
  list->layer = 7;
  const auto first = copier.Submit(list, Copier::kCpu);
  const auto second = copier.Submit(InRounds({{}}), Copier::kCpu);
  std::size_t num_ended = 0;
  while (const auto progress = copier.FirstUnderWay()) {
    EXPECT_EQ(progress->ticket, first);
    EXPECT_EQ(progress->layer, 7);
    EXPECT_GE(progress->num_ended, num_ended);
    EXPECT_LE(progress->num_ended, 200U);
    EXPECT_TRUE(progress->has_begun || progress->num_ended == 0);
    num_ended = progress->num_ended;
  }
  EXPECT_TRUE(copier.IsDone(first) && copier.IsDone(second));
}

TEST(CopyRound, KeepsCopiesAsTheArraysThatADriverTakes) {
  Bytes bytes(3);
  CopyRound round;
  EXPECT_TRUE(round.empty());
  round.Add({bytes.data(), bytes.data() + 1, 1});
  round.Add({bytes.data() + 2, bytes.data(), 2});
  EXPECT_EQ(round.size(), 2U);
  EXPECT_EQ(round.destinations()[1], reinterpret_cast<CopyRound::Address>(bytes.data() + 2));
  EXPECT_EQ(round.sources()[0], reinterpret_cast<CopyRound::Address>(bytes.data() + 1));
  EXPECT_EQ(round.sizes()[1], 2U);
  EXPECT_EQ(round[1].destination, bytes.data() + 2);
  EXPECT_EQ(round[1].source, bytes.data());
  EXPECT_EQ(round[1].num_bytes, 2U);
}

TEST_P(HostCopierTest, GoesWhileCopiesAreLeft) {
  const Bytes source = Pattern(1 << 20, 1);
  Bytes destination(source.size());
  HostCopier copier(GetParam(), {});
  copier.Submit(InRounds(std::vector<std::vector<Copy>>(
                    10000, {{destination.data(), source.data(), source.size()}})),
                Copier::kCpu);
}

std::shared_ptr<const CopyList> Noted(const Bytes& source, Bytes& destination,
                                      std::size_t num_rounds) {
  const std::size_t half = source.size() / 2;
  const Copy first{destination.data(), source.data(), half};
  const Copy second{destination.data() + half, source.data() + half, half};
  auto list = std::make_shared<CopyList>(
      std::vector<std::vector<Copy>>(num_rounds, std::vector<Copy>{first, second}));
  list->layer = 5;
  for (std::size_t i = 0; i < num_rounds; ++i) list->peers.insert(list->peers.end(), {1, 2});
  return list;
}

TEST_P(HostCopierTest, RecordsTheListsSubmittedMeanwhile) {
  HostCopier copier(GetParam(), {});
  const Bytes source = Pattern(1 << 16, 1);
  Bytes destination(source.size());
  const auto list = Noted(source, destination, 3);
  copier.Submit(list, Copier::kCpu);
  copier.StartRecording({.max_marks = 2, .max_spans = 100});
  const auto ticket = copier.Submit(list, Copier::kCpu);
  EXPECT_EQ(copier.Mark(Copier::kCpu), 0);
  copier.EndRecording();
  copier.Submit(list, Copier::kCpu);
  EXPECT_EQ(copier.Mark(Copier::kCpu), Copier::kNoMark);
  const Recording recording = copier.TakeRecording();
  ASSERT_EQ(recording.copies.size(), 6U);
  for (const CopySpan& span : recording.copies) {
    EXPECT_EQ(span.ticket, ticket);
    EXPECT_EQ(span.layer, 5);
    EXPECT_EQ(span.num_bytes, source.size() / 2);
    EXPECT_LE(span.begin_ns, span.end_ns);
  }
  EXPECT_EQ(recording.marks_ns.size(), 1U);
  EXPECT_EQ(copier.TakeRecording().copies.size(), 0U);
}

TEST_P(HostCopierTest, LongListsShareSpansAndNoByteIsLost) {
  HostCopier copier(GetParam(), {});
  const Bytes source = Pattern(64, 1);
  Bytes destination(source.size());
  copier.StartRecording({.max_marks = 0, .max_spans = 600});
  for (int i = 0; i < 3; ++i) copier.Submit(Noted(source, destination, 2000), Copier::kCpu);
  const Recording recording = copier.TakeRecording();
  EXPECT_LE(recording.copies.size(), 600U);
  std::size_t num_bytes = recording.num_dropped_bytes;
  for (const CopySpan& span : recording.copies) {
    EXPECT_LE(span.busy_ns, static_cast<std::int64_t>(GetParam()) * (span.end_ns - span.begin_ns));
    num_bytes += span.num_bytes;
  }
  EXPECT_EQ(num_bytes, 3 * 2000 * source.size());
  EXPECT_GT(recording.num_dropped_bytes, 0U);
}

INSTANTIATE_TEST_SUITE_P(Threads, HostCopierTest, testing::Values(1, 2, 4));

TEST(HostCopier, RefusesNoThreadsUnknownTicketsAndCores) {
  ExpectRefusal([] { HostCopier(0, {}); }, {"at least one thread", "got none"});
  ExpectRefusal([] { HostCopier(1, {1023}); }, {"binding a copier's thread"});
  HostCopier copier(1, {});
  ExpectRefusal([&] { copier.Wait(1, Copier::kCpu); }, {"ticket", "got 1 of 0"});
}

struct Layer {
  static constexpr std::size_t kRow = 100;
  Bytes peers = Pattern(8 * kRow, 3);
  Bytes slot = Bytes(8 * kRow);
  std::shared_ptr<Copier> copier = std::make_shared<HostCopier>(2, std::vector<int>{});

  // Experts 0 and 1 are local; peer 1 has 2 to 4, peer 2 the others.
  ChosenExperts Chosen() {
    std::vector<ChosenExperts::Expert> experts(8);
    for (std::size_t e = 2; e < 8; ++e) {
      for (const std::size_t at : {e * kRow, e * kRow + 60}) {
        const std::size_t num_bytes = at == e * kRow ? 60 : 40;
        experts[e].push_back({e < 5 ? 1UL : 2UL, {slot.data() + at, peers.data() + at, num_bytes}});
      }
    }
    return {copier, experts, 3};
  }

  std::set<std::size_t> Held() const {
    std::set<std::size_t> held;
    for (std::size_t e = 0; e < 8; ++e) {
      if (std::equal(slot.begin() + e * kRow, slot.begin() + (e + 1) * kRow,
                     peers.begin() + e * kRow)) {
        held.insert(e);
      }
    }
    return held;
  }
};

TEST(ChosenExperts, BringsEachChosenMissingExpertOnce) {
  Layer layer;
  ChosenExperts chosen = layer.Chosen();
  const std::int32_t ids[] = {0, 5, 2, 5, -1, 2, 5};
  const auto fetched = chosen.Fetch(ids, std::size(ids));
  EXPECT_EQ(fetched.bytes_by_peer, (std::vector<std::size_t>{0, 100, 100}));
  EXPECT_EQ(fetched.num_copies, 4U);
  EXPECT_EQ(fetched.num_hits, 0U);
  EXPECT_EQ(layer.Held(), (std::set<std::size_t>{2, 5}));
}

TEST(ChosenExperts, BringsNothingThatTheSlotHoldsUntilToldToForget) {
  Layer layer;
  ChosenExperts chosen = layer.Chosen();
  const std::int64_t ids[] = {7, 3};
  chosen.Fetch(ids, 2);
  const auto again = chosen.Fetch(ids, 2);
  EXPECT_EQ(again.num_copies, 0U);
  EXPECT_EQ(again.num_hits, 2U);
  std::fill(layer.slot.begin(), layer.slot.end(), std::byte{0});
  chosen.Forget();
  EXPECT_EQ(chosen.Fetch(ids, 2).num_copies, 4U);
  EXPECT_EQ(layer.Held(), (std::set<std::size_t>{3, 7}));
}

TEST(ChosenExperts, RefusesExpertsAndPeersThatDoNotExist) {
  Layer layer;
  ChosenExperts chosen = layer.Chosen();
  const std::int32_t id = 8;
  ExpectRefusal([&] { chosen.Fetch(&id, 1); }, {"below 8", "chose 8"});
  ExpectRefusal([&] { ChosenExperts(layer.copier, {{{3, {}}}}, 3); }, {"below 3", "got 3"});
}

TEST(SlotPage, ViewsShowWhatIsWrittenThroughItsAlias) {
  auto driver = Driver();
  SlotPage page(driver, 2 * kPage, kPage);
  View first(driver, 3 * kPage), second(driver, 4 * kPage);
  first.MapPrivate(0, kPage);
  first.MapSlotPage(kPage, page);
  first.Finish();
  second.MapSlotPage(0, page);
  second.MapPrivate(2 * kPage, 2 * kPage);
  second.Finish();
  for (const int value : {1, 2}) {
    std::ranges::copy(Pattern(page.num_bytes(), value), page.address());
    EXPECT_TRUE(Holds(first.address() + kPage, 2 * kPage, value));
    EXPECT_TRUE(Holds(second.address(), 2 * kPage, value));
  }
}

TEST(SlotPage, OverlapsAndPartsOfPagesAreRefused) {
  auto driver = Driver();
  SlotPage page(driver, 2 * kPage, 0);
  View view(driver, 3 * kPage);
  view.MapSlotPage(0, page);
  ExpectRefusal([&] { view.MapSlotPage(kPage, page); }, {"overlap"});
  ExpectRefusal([&] { SlotPage(driver, kPage / 2, 0); }, {"whole pages"});
}

}  // namespace
}  // namespace dwdp
