// compare_machines: equal machines have no difference; each kind of difference is found, and said in words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmstate/qemu_machine.h"

namespace pageferry {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

json machine() {
  return json::parse(R"({
    "machine-type": "pc-q35-7.2", "qemu-version": 70222, "uuid": "u", "kvm": true, "board": ["hpet"],
    "cpus": [{"type": "qemu64-x86_64-cpu", "props": {"socket-id": 0}, "present": true, "path": "/machine/unattached/device[0]"}],
    "cpu-features": {"eax=1 EDX": 6, "eax=7 ecx=0 EBX": 1},
    "memory": {"base-memory": 134217728, "plugged-memory": 134217728},
    "memory-devices": [{"type": "dimm", "data": {"memdev": "/objects/m1", "id": "dimm1", "addr": 4294967296, "size": 134217728,
                                                  "slot": 0, "node": 0, "hotplugged": true}}],
    "ram-blocks": [{"name": "pc.ram", "bytes-max": 134217728, "page": "4 KiB"}],
    "devices": [
      {"id": "net0", "path": "/machine/peripheral/net0", "type": "virtio-net-pci", "hotplugged": false,
       "properties": {"mac": "52:54:00:12:34:56", "legacy-addr": "02.0", "parent_bus": "/machine/q35/pcie.0"}},
      {"path": "/machine/peripheral-anon/device[0]", "type": "virtio-rng-pci", "hotplugged": false,
       "properties": {"legacy-addr": "03.0", "parent_bus": "/machine/q35/pcie.0"}}],
    "disks": [{"device": "dr0", "qdev": "/machine/peripheral/blk0", "removable": false, "bytes": 1024, "read-only": false,
               "driver": "qcow2", "direct": true,
               "images": [{"filename": "top.qcow2", "format": "qcow2"}, {"filename": "base.img", "format": "raw"}]},
              {"device": "cd0", "qdev": "/machine/peripheral/cd", "removable": true, "images": []}]
  })");
}

// What compare_machines says after `change` at the destination; expects one difference.
std::string difference_after(const std::function<void(json&)>& change) {
  json destination = machine();
  change(destination);
  const auto differences = compare_machines(machine(), destination, "/srv/vm");
  EXPECT_EQ(differences.size(), 1U);
  return differences.empty() ? "" : differences[0];
}

TEST(CompareMachinesTest, EqualOnesHaveNoDifference) {
  EXPECT_THAT(compare_machines(machine(), machine(), "/srv/vm"), IsEmpty());
}

TEST(CompareMachinesTest, RelativeImageIsTheOneInTheWorkingDirectory) {
  json destination = machine();
  destination["disks"][0]["images"][1]["filename"] = "/srv/vm/base.img";
  EXPECT_THAT(compare_machines(machine(), destination, "/srv/vm"), IsEmpty());
  EXPECT_THAT(compare_machines(machine(), destination, "/elsewhere"),
              ElementsAre(HasSubstr("/elsewhere/base.img")));
}

TEST(CompareMachinesTest, WhatCannotMatterIsIgnored) {
  json destination = machine();
  destination["qemu-version"] = 100002;
  destination["board"] = json::array();             // nested otherwise in another version
  destination["ram-blocks"][0]["page"] = "2 MiB";   // hugetlb at the destination
  destination["cpu-features"]["eax=1 EDX"] = 0xff;  // a better CPU
  destination["disks"][0]["direct"] = false;
  destination["devices"][0]["hotplugged"] =
      true;  // plugged at run time there, on the command line here
  destination["devices"][1]["path"] = "/machine/peripheral-anon/device[7]";
  destination["cpus"][0]["path"] = "/machine/unattached/device[9]";
  EXPECT_THAT(compare_machines(machine(), destination, "/srv/vm"), IsEmpty());
}

TEST(CompareMachinesTest, MachineTypeIsNamedOnBothSides) {
  EXPECT_EQ(difference_after([](json& d) {
              d["machine-type"] = "pc-q35-10.0";
              d["qemu-version"] = 100000;
            }),
            "machine type: source has pc-q35-7.2, destination has pc-q35-10.0");
}

TEST(CompareMachinesTest, MissingCpuFeatureIsFoundToTheBit) {
  EXPECT_THAT(difference_after([](json& d) { d["cpu-features"]["eax=1 EDX"] = 2; }),
              HasSubstr("CPUID eax=1 EDX bits 0x4"));
  EXPECT_THAT(difference_after([](json& d) { d["cpu-features"].erase("eax=7 ecx=0 EBX"); }),
              HasSubstr("eax=7 ecx=0 EBX bits 0x1"));
}

TEST(CompareMachinesTest, AcceleratorMatters) {
  EXPECT_THAT(difference_after([](json& d) { d["kvm"] = false; }), HasSubstr("KVM"));
}

TEST(CompareMachinesTest, CpuThatIsMissingOrNotPluggedInIsFound) {
  EXPECT_THAT(difference_after([](json& d) { d["cpus"] = json::array(); }),
              HasSubstr("only the source has it"));
  EXPECT_THAT(difference_after([](json& d) { d["cpus"][0]["present"] = false; }),
              HasSubstr("plugged in"));
  EXPECT_THAT(difference_after([](json& d) { d["cpus"][0]["type"] = "host-x86_64-cpu"; }),
              HasSubstr("type"));
}

TEST(CompareMachinesTest, MemoryDevicesAreComparedByPlace) {
  EXPECT_THAT(
      difference_after([](json& d) { d["memory-devices"][0]["data"]["addr"] = 8589934592; }),
      HasSubstr("addr"));
  EXPECT_THAT(difference_after([](json& d) { d["memory-devices"] = json::array(); }),
              HasSubstr("/objects/m1: only the source has it"));
}

TEST(CompareMachinesTest, RamBlockOfAnotherSizeIsFound) {
  EXPECT_EQ(difference_after([](json& d) { d["ram-blocks"][0]["bytes-max"] = 1; }),
            "RAM block pc.ram size: source has 134217728, destination has 1");
}

TEST(CompareMachinesTest, DevicesAreFoundByIdOrByPlace) {
  EXPECT_EQ(difference_after([](json& d) { d["devices"].erase(0); }),
            "device net0: only the source has it");
  EXPECT_THAT(
      difference_after([](json& d) { d["devices"][0]["properties"]["mac"] = "52:54:00:00:00:01"; }),
      HasSubstr("net0 mac"));
  EXPECT_THAT(difference_after([](json& d) { d["devices"].erase(1); }),
              HasSubstr("virtio-rng-pci without id parent_bus=/machine/q35/pcie.0 "
                        "legacy-addr=03.0: only the source"));
  EXPECT_THAT(difference_after([](json& d) {
                d["devices"].push_back({{"id", "x"}, {"type", "e1000"}});
              }),
              HasSubstr("device x: only the destination"));
}

TEST(CompareMachinesTest, PropertyThatTheOtherVersionDoesNotHaveIsNoDifference) {
  json destination = machine();
  destination["devices"][0]["properties"].erase("mac");
  EXPECT_THAT(compare_machines(machine(), destination, "/srv/vm"), IsEmpty());
}

TEST(CompareMachinesTest, WholeImageChainIsCompared) {
  EXPECT_EQ(difference_after([](json& d) { d["disks"][0]["images"].erase(0); }),
            "disk dr0: source has /srv/vm/top.qcow2 on /srv/vm/base.img open, destination has "
            "/srv/vm/base.img");
  EXPECT_EQ(difference_after([](json& d) {
              d["disks"][1]["images"].push_back({{"filename", "x.iso"}});
            }),
            "disk cd0: source has no medium open, destination has /srv/vm/x.iso");
  EXPECT_THAT(difference_after([](json& d) { d["disks"][0]["read-only"] = true; }),
              HasSubstr("read-only"));
}

TEST(CompareMachinesTest, MalformedDescriptionIsADifference) {
  EXPECT_THAT(compare_machines(json(), machine(), "/srv/vm"),
              ElementsAre(HasSubstr("source's machine is not described")));
  EXPECT_THAT(compare_machines(machine(), json::array(), "/srv/vm"),
              ElementsAre(HasSubstr("destination's")));
  json broken = machine();
  broken["cpu-features"]["eax=1 EDX"] = "many";
  EXPECT_THAT(compare_machines(broken, machine(), "/srv/vm"), ElementsAre(HasSubstr("malformed")));
}

}  // namespace
}  // namespace pageferry
