// argv_with_hotplug: what was plugged in or out since the start, as options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fakes/command_words.h"
#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

using testing_support::words_of;

using nlohmann::json;
using testing::HasSubstr;

std::string updated(const std::string& argv, const json& machine) {
  const auto result = argv_with_hotplug(words_of(argv), machine);
  if (!result) return "refused: " + result.error().message;
  std::string text;
  for (const auto& word : *result) text += (text.empty() ? "" : " ") + word;
  return text;
}

json dimm(const std::string& id, const std::string& backend) {
  return {{"type", "dimm"},
          {"data",
           {{"id", id},
            {"memdev", "/objects/" + backend},
            {"addr", 4294967296},
            {"slot", 1},
            {"node", 0},
            {"size", 4096}}}};
}
json device(const std::string& id, const std::string& type, const json& properties) {
  return {{"id", id},
          {"type", type},
          {"hotplugged", true},
          {"path", "/machine/peripheral/" + id},
          {"properties", properties}};
}

TEST(ArgvWithHotplugTest, NothingPluggedChangesNothing) {
  const std::string argv = "qemu -m 1G -device virtio-rng-pci -device e1000,id=n -append -v";
  EXPECT_EQ(updated(argv, {{"devices", {{{"id", "n"}, {"type", "e1000"}, {"hotplugged", false}}}}}),
            argv);
}

TEST(ArgvWithHotplugTest, PluggedDimmIsAddedWithItsBackendAndPlace) {
  const json machine = {
      {"memory-devices", {dimm("d1", "m1")}},
      {"memory-backends",
       {{{"id", "m1"}, {"type", "memory-backend-ram"}, {"size", 4096}, {"share", false}}}},
      {"devices", {device("d1", "pc-dimm", json::object())}}};
  const std::string once = updated("qemu -m 1G,slots=2,maxmem=4G", machine);
  EXPECT_EQ(once,
            "qemu -m 1G,slots=2,maxmem=4G -object memory-backend-ram,id=m1,size=4096,share=off"
            " -device pc-dimm,id=d1,memdev=m1,addr=4294967296,slot=1,node=0");
  EXPECT_EQ(updated(once, machine), once) << "idempotent";
}

TEST(ArgvWithHotplugTest, HugetlbBackendKeepsItsPages) {
  const json machine = {{"memory-devices", {dimm("d1", "m1")}},
                        {"memory-backends",
                         {{{"id", "m1"},
                           {"type", "memory-backend-memfd"},
                           {"size", 2097152},
                           {"hugetlb", true},
                           {"hugetlbsize", 2097152},
                           {"policy", "bind"},
                           {"host-nodes", {0}}}}}};
  EXPECT_THAT(updated("qemu", machine),
              HasSubstr("memory-backend-memfd,id=m1,size=2097152,hugetlb=on,hugetlbsize=2097152,"
                        "host-nodes=0,policy=bind"));
}

TEST(ArgvWithHotplugTest, DimmOfTheCommandLineIsNotAddedAgain) {
  const std::string argv =
      "qemu -object memory-backend-ram,id=m1,size=4096 -device pc-dimm,memdev=m1";
  const json machine = {{"memory-devices", {dimm("d1", "m1")}},
                        {"memory-backends", {{{"id", "m1"}}}}};
  EXPECT_EQ(updated(argv, machine), argv);
}

TEST(ArgvWithHotplugTest, UnpluggedDeviceAndBackendAreTakenOut) {
  EXPECT_EQ(updated("qemu -object memory-backend-ram,id=m1,size=4096 -device pc-dimm,memdev=m1 "
                    "-device e1000,id=n"
                    " -object iothread,id=io -device virtio-rng-pci",
                    {{"devices", json::array()}}),
            "qemu -object iothread,id=io -device virtio-rng-pci");
}

TEST(ArgvWithHotplugTest, PluggedCardAndDiskAreWrittenAsOptions) {
  const json machine = {{"devices",
                         {device("n1", "virtio-net-pci",
                                 {{"netdev", "net1"},
                                  {"mac", "52:54:00:00:00:01"},
                                  {"mq", false},
                                  {"bootindex", -1},
                                  {"parent_bus", "/machine/peripheral/rp0/rp0"},
                                  {"legacy-addr", "00.0"}}),
                          device("b1", "virtio-blk-pci",
                                 {{"drive", "d1"},
                                  {"serial", ""},
                                  {"num-queues", 2},
                                  {"parent_bus", "/machine/i440fx/pci.0"},
                                  {"legacy-addr", "05.0"}})}}};
  EXPECT_EQ(
      updated("qemu -netdev user,id=net1 -drive if=none,id=d1,file=a", machine),
      "qemu -netdev user,id=net1 -drive if=none,id=d1,file=a"
      " -device virtio-net-pci,id=n1,bus=rp0,addr=00.0,netdev=net1,mac=52:54:00:00:00:01,mq=off"
      " -device virtio-blk-pci,id=b1,bus=pci.0,addr=05.0,drive=d1,num-queues=2");
}

TEST(ArgvWithHotplugTest, PluggedCpuIsWrittenWithItsSocket) {
  const json machine = {{"devices", {device("c1", "qemu64-x86_64-cpu", json::object())}},
                        {"cpus",
                         {{{"path", "/machine/peripheral/c1"},
                           {"type", "qemu64-x86_64-cpu"},
                           {"present", true},
                           {"props", {{"core-id", 0}, {"socket-id", 1}, {"thread-id", 0}}}}}}};
  EXPECT_EQ(
      updated("qemu -smp 1,maxcpus=2", machine),
      "qemu -smp 1,maxcpus=2 -device qemu64-x86_64-cpu,id=c1,core-id=0,socket-id=1,thread-id=0");
}

TEST(ArgvWithHotplugTest, WhatCannotBeWrittenIsRefusedByName) {
  EXPECT_THAT(
      updated("qemu", {{"devices", {device("v1", "virtio-gpu-pci", json::object())}}}),
      testing::AllOf(HasSubstr("device v1 (virtio-gpu-pci)"), HasSubstr("--incoming-command")));
  EXPECT_THAT(updated("qemu", {{"devices", {device("n1", "e1000", {{"netdev", "net9"}})}}}),
              HasSubstr("its netdev \"net9\" too"));
  EXPECT_THAT(
      updated("qemu",
              {{"memory-devices",
                {{{"type", "virtio-mem"}, {"data", {{"id", "vm1"}, {"memdev", "/objects/x"}}}}}}}),
      HasSubstr("vm1 is a virtio-mem"));
}

TEST(ArgvWithHotplugTest, DeviceWithoutIdIsRefused) {
  json anonymous = device("", "e1000", json::object());
  anonymous.erase("id");
  EXPECT_THAT(updated("qemu", {{"devices", {anonymous}}}), HasSubstr("no id"));
}

json disk(const std::string& name, const json& images) {
  return {{"disks", {{{"device", name}, {"removable", name == "cd"}, {"images", images}}}}};
}

TEST(ArgvWithHotplugTest, DriveGetsTheImageThatASnapshotPutOnTop) {
  const json machine = disk("d", {{{"filename", "over,1.qcow2"}, {"format", "qcow2"}},
                                  {{"filename", "a.img"}, {"format", "raw"}}});
  const std::string once =
      updated("qemu -drive file=a.img,if=none,id=d,format=raw,cache=none", machine);
  EXPECT_EQ(once, "qemu -drive file=over,,1.qcow2,if=none,id=d,format=qcow2,cache=none");
  EXPECT_EQ(updated(once, machine), once);
}

TEST(ArgvWithHotplugTest, EjectedAndChangedMediaAreFollowed) {
  EXPECT_EQ(updated("qemu -drive file=a.iso,id=cd,media=cdrom", disk("cd", json::array())),
            "qemu -drive id=cd,media=cdrom");
  EXPECT_EQ(updated("qemu -drive id=cd,media=cdrom",
                    disk("cd", {{{"filename", "b.iso"}, {"format", "raw"}}})),
            "qemu -drive id=cd,media=cdrom,file=b.iso,format=raw");
}

TEST(ArgvWithHotplugTest, ImagesThatDidNotChangeOrCannotBeToldStayAsTheyAre) {
  for (const char* argv :
       {"qemu -drive file=a.img,id=d", "qemu -drive file.driver=file,file.filename=a.img,id=d",
        "qemu -drive file=a.img"}) {
    EXPECT_EQ(updated(argv, disk("d", {{{"filename", "a.img"}, {"format", "raw"}}})), argv);
  }
  EXPECT_EQ(updated("qemu -drive file=a.img,id=d",
                    disk("d", {{{"filename", "json:{}"}, {"format", "raw"}}})),
            "qemu -drive file=a.img,id=d");
  EXPECT_EQ(updated("qemu -drive file=a.img,id=d", disk("d", json::array())),
            "qemu -drive file=a.img,id=d");
}

}  // namespace
}  // namespace pageferry
