// make_destination_command, as tables: one option in, what stands in its place out; whole command
// lines of real set-ups; what is refused; and that a second move gives a command line of the same
// length.
#include "vmstate/qemu_destination_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fakes/command_words.h"

namespace pageferry {
namespace {

using testing_support::words_of;

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::string line(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

DestinationPlace place(DestinationHost host, const std::string& run_directory = "/run/pf/vm/1") {
  return {.host = host,
          .run_directory = run_directory,
          .machine_type = "pc-q35-7.2",
          .run_id = run_directory.substr(run_directory.rfind('/') + 1),
          .is_directory = [](const std::string& path) { return path == "/dev/hugepages"; }};
}

const std::string kOurs =
    " -S -incoming defer -chardev "
    "socket,id=pageferry-oob,path=/run/pf/vm/1/pageferry-oob.sock,server=on,wait=off"
    " -mon chardev=pageferry-oob,mode=control -chardev "
    "socket,id=pageferry-qmp,path=/run/pf/vm/1/pageferry-qmp.sock,server=on,wait=off"
    " -mon chardev=pageferry-qmp,mode=control";

// The options that `source` becomes, without machine type and our own.
std::string rewritten(const std::string& source, DestinationHost host) {
  const auto command =
      make_destination_command(words_of("qemu -machine q35 " + source), place(host));
  if (!command) return "refused: " + command.error().message;
  const std::string text = line(command->argv);
  const std::string head = "qemu -machine pc-q35-7.2";
  EXPECT_TRUE(text.starts_with(head)) << text;
  EXPECT_TRUE(text.ends_with(kOurs)) << text;
  std::string middle = text.substr(head.size(), text.size() - head.size() - kOurs.size());
  if (!middle.empty()) middle.erase(0, 1);
  return middle;
}

struct Case {
  const char* source;
  const char* same_host;
  const char* other_host;  // nullptr: as on the same host
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.source;
}

class OptionBecomes : public testing::TestWithParam<Case> {};

TEST_P(OptionBecomes, OnTheSameHost) {
  EXPECT_EQ(rewritten(GetParam().source, DestinationHost::same), GetParam().same_host);
}

TEST_P(OptionBecomes, OnAnotherHost) {
  const char* expected =
      GetParam().other_host != nullptr ? GetParam().other_host : GetParam().same_host;
  EXPECT_EQ(rewritten(GetParam().source, DestinationHost::other), expected);
}

TEST_P(OptionBecomes, TheSameKindWhenMovedAgain) {
  for (const auto host : {DestinationHost::same, DestinationHost::other}) {
    const auto once = make_destination_command(
        words_of(std::string("qemu -machine q35 ") + GetParam().source), place(host));
    ASSERT_TRUE(once) << once.error().message;
    const auto twice = make_destination_command(once->argv, place(host, "/run/pf/vm/2"));
    ASSERT_TRUE(twice) << twice.error().message;
    const auto thrice = make_destination_command(twice->argv, place(host, "/run/pf/vm/1"));
    ASSERT_TRUE(thrice) << thrice.error().message;
    EXPECT_EQ(line(thrice->argv), line(once->argv));
    EXPECT_EQ(line(twice->argv).size(), line(once->argv).size());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Machine, OptionBecomes,
    testing::Values(Case{"-m 2G -smp 2 -cpu host -name guest=web,debug-threads=on",
                         "-m 2G -smp 2 -cpu host -name guest=web,debug-threads=on", nullptr},
                    Case{"-drive file=/srv/a.qcow2,if=virtio,cache=none",
                         "-drive file=/srv/a.qcow2,if=virtio,cache=none", nullptr},
                    Case{"disk.img -append -v -kernel k -initrd i",
                         "disk.img -append -v -kernel k -initrd i", nullptr},
                    Case{R"(-device {"driver":"virtio-net-pci","netdev":"n0"})",
                         R"(-device {"driver":"virtio-net-pci","netdev":"n0"})", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    OursOfAnEarlierMove, OptionBecomes,
    testing::Values(Case{"-S", "", nullptr}, Case{"-incoming defer", "", nullptr},
                    Case{"-incoming tcp:0:4444", "", nullptr}, Case{"-daemonize", "", nullptr},
                    Case{"-runas nobody", "", nullptr},
                    Case{"-chardev socket,id=pageferry-qmp,path=/old/q,server=on,wait=off -mon "
                         "chardev=pageferry-qmp,mode=control",
                         "", nullptr},
                    Case{"-chardev socket,id=pageferry-oob,path=/old/o,server=on,wait=off -mon "
                         "chardev=pageferry-oob,mode=control",
                         "", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    Files, OptionBecomes,
    testing::Values(
        Case{"-pidfile /run/vm/web.pid", "-pidfile /run/pf/vm/1/web.pid", nullptr},
        Case{"-D /var/log/web.log -d guest_errors", "-D /run/pf/vm/1/web.log -d guest_errors",
             nullptr},
        Case{"-pidfile a/x -D b/x", "-pidfile /run/pf/vm/1/x -D /run/pf/vm/1/x-2", nullptr},
        Case{"-D qemu.log", "-D /run/pf/vm/1/user-qemu.log", nullptr},
        Case{"-trace enable=qio*,file=/tmp/t.bin", "-trace enable=qio*,file=/run/pf/vm/1/t.bin",
             nullptr},
        Case{"-audiodev wav,id=a,path=/tmp/a.wav", "-audiodev wav,id=a,path=/run/pf/vm/1/a.wav",
             nullptr},
        Case{"-run-with user=nobody,async-teardown=on", "-run-with async-teardown=on", nullptr},
        Case{"-object filter-dump,id=f,netdev=n,file=/tmp/n.pcap",
             "-object filter-dump,id=f,netdev=n,file=/run/pf/vm/1/n.pcap", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    Monitors, OptionBecomes,
    testing::Values(
        Case{"-qmp unix:/tmp/q.sock,server,nowait",
             "-qmp unix:/run/pf/vm/1/q.sock,server=on,wait=off", nullptr},
        Case{
            "-qmp unix:/tmp/q.sock,server=on,wait=off -monitor unix:/tmp/m.sock,server=on,wait=off",
            "-qmp unix:/run/pf/vm/1/q.sock,server=on,wait=off -monitor "
            "unix:/run/pf/vm/1/m.sock,server=on,wait=off",
            nullptr},
        Case{"-qmp tcp:localhost:4444,server=on,wait=off",
             "-qmp tcp:localhost:0,server=on,wait=off",
             "-qmp tcp:localhost:4444,server=on,wait=off"},
        Case{"-monitor telnet::4445,server,nowait", "-monitor telnet::0,server=on,wait=off",
             "-monitor telnet::4445,server=on,wait=off"},
        Case{"-monitor stdio", "-monitor none", nullptr}, Case{"-qmp stdio", "", nullptr},
        Case{"-monitor none", "-monitor none", nullptr},
        Case{"-chardev socket,id=mon1,path=/run/a/qmp,server=on,wait=on -mon "
             "chardev=mon1,mode=control",
             "-chardev socket,id=mon1,path=/run/pf/vm/1/qmp,server=on,wait=off -mon "
             "chardev=mon1,mode=control",
             nullptr},
        Case{"-qmp unix:/a/m -monitor unix:/b/m,server",
             "-qmp unix:/a/m -monitor unix:/run/pf/vm/1/m,server=on,wait=off", nullptr},
        Case{"-qmp unix:/tmp/pageferry-qmp.sock,server=on,wait=off",
             "-qmp unix:/run/pf/vm/1/user-pageferry-qmp.sock,server=on,wait=off", nullptr},
        Case{"-qmp unix:/tmp/pageferry-oob.sock,server=on,wait=off",
             "-qmp unix:/run/pf/vm/1/user-pageferry-oob.sock,server=on,wait=off", nullptr},
        Case{"-gdb tcp::1234", "-gdb unix:/run/pf/vm/1/gdb.sock,server=on,wait=off",
             "-gdb tcp::1234"},
        Case{"-s", "-gdb unix:/run/pf/vm/1/gdb.sock,server=on,wait=off", "-s"}));

INSTANTIATE_TEST_SUITE_P(
    CharacterDevices, OptionBecomes,
    testing::Values(
        Case{"-serial file:/var/log/con,sole",
             "-chardev file,id=pageferry-serial0,path=/var/log/con,,sole,append=on"
             " -serial chardev:pageferry-serial0",
             nullptr},
        Case{"-serial file:a -serial file:b",
             "-chardev file,id=pageferry-serial0,path=a,append=on -serial chardev:pageferry-serial0"
             " -chardev file,id=pageferry-serial1,path=b,append=on -serial "
             "chardev:pageferry-serial1",
             nullptr},
        Case{"-chardev file,id=s0,path=/var/log/c.log -serial chardev:s0",
             "-chardev file,id=s0,path=/var/log/c.log,append=on -serial chardev:s0", nullptr},
        Case{"-chardev file,id=s0,path=/var/log/c.log,append=off",
             "-chardev file,id=s0,path=/var/log/c.log,append=on", nullptr},
        Case{"-chardev pty,id=p,logfile=/var/log/p",
             "-chardev pty,id=p,logfile=/var/log/p,logappend=on", nullptr},
        Case{"-chardev pty,id=p,path=/tmp/link", "-chardev pty,id=p,path=/run/pf/vm/1/link",
             nullptr},
        Case{"-serial pty -parallel none -serial null -serial vc:80Cx24C",
             "-serial pty -parallel none -serial null -serial vc:80Cx24C", nullptr},
        Case{"-nographic -serial mon:stdio", "-nographic -serial mon:stdio", nullptr},
        Case{"-serial stdio", "-serial stdio", nullptr},
        Case{"-serial unix:/run/c0,server", "-serial unix:/run/pf/vm/1/c0,server=on,wait=off",
             nullptr},
        Case{"-serial unix:/run/concentrator", "-serial unix:/run/concentrator", nullptr},
        Case{"-serial mon:unix:/run/c0,server=on",
             "-serial mon:unix:/run/pf/vm/1/c0,server=on,wait=off", nullptr},
        Case{"-serial tcp:log.example:7000,nodelay", "-serial tcp:log.example:7000,nodelay=on",
             nullptr},
        Case{"-serial udp:4555@:4556", "-serial udp:4555", "-serial udp:4555@:4556"},
        Case{"-serial pipe:/tmp/p", "-serial pipe:/run/pf/vm/1/p", nullptr},
        Case{"-chardev pipe,id=p,path=/tmp/p", "-chardev pipe,id=p,path=/run/pf/vm/1/p", nullptr},
        Case{"-chardev socket,id=c,host=0.0.0.0,port=7001,server=on",
             "-chardev socket,id=c,host=0.0.0.0,port=0,server=on,wait=off",
             "-chardev socket,id=c,host=0.0.0.0,port=7001,server=on,wait=off"},
        Case{"-chardev socket,id=c,host=0.0.0.0,port=7001,to=7009,server=on",
             "-chardev socket,id=c,host=0.0.0.0,port=7001,to=7009,server=on,wait=off", nullptr},
        Case{"-chardev socket,id=c,path=/run/peer,reconnect=1",
             "-chardev socket,id=c,path=/run/peer,reconnect=1", nullptr},
        Case{"-chardev udp,id=u,host=a,port=1,localport=2",
             "-chardev udp,id=u,host=a,port=1,localport=0",
             "-chardev udp,id=u,host=a,port=1,localport=2"},
        Case{"-debugcon file:/tmp/d",
             "-chardev file,id=pageferry-debugcon0,path=/tmp/d,append=on"
             " -debugcon chardev:pageferry-debugcon0",
             nullptr},
        Case{"-chardev spicevmc,id=v,name=vdagent -chardev ringbuf,id=r",
             "-chardev spicevmc,id=v,name=vdagent -chardev ringbuf,id=r", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    Displays, OptionBecomes,
    testing::Values(Case{"-vnc :1", "-vnc :1,to=100", "-vnc :1"},
                    Case{"-vnc none", "-vnc none", nullptr},
                    Case{"-vnc 127.0.0.1:3,password=on,websocket=5701",
                         "-vnc 127.0.0.1:3,password=on,websocket=on,to=102",
                         "-vnc 127.0.0.1:3,password=on,websocket=5701"},
                    Case{"-vnc unix:/run/v.sock,password=on",
                         "-vnc unix:/run/pf/vm/1/v.sock,password=on", nullptr},
                    Case{"-vnc viewer:5500,reverse=on", "-vnc viewer:5500,reverse=on", nullptr},
                    Case{"-display vnc=:2", "-display vnc=:2,to=101", "-display vnc=:2"},
                    Case{"-display gtk,gl=off", "-display gtk,gl=off", "-display none"},
                    Case{"-display curses", "-display none", nullptr},
                    Case{"-curses", "-display none", nullptr},
                    Case{"-display none", "-display none", nullptr},
                    Case{"-spice port=5900,addr=127.0.0.1,disable-ticketing=on",
                         "-spice disable-ticketing=on,addr=/run/pf/vm/1/spice.sock,unix=on",
                         "-spice port=5900,addr=127.0.0.1,disable-ticketing=on"},
                    Case{"-spice unix=on,addr=/tmp/s.sock",
                         "-spice unix=on,addr=/run/pf/vm/1/s.sock", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    Networks, OptionBecomes,
    testing::Values(
        Case{"-netdev user,id=n,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53", "-netdev user,id=n",
             nullptr},
        Case{"-nic user,model=virtio,hostfwd=tcp::2222-:22", "-nic user,model=virtio", nullptr},
        Case{"-net nic -net user", "-net nic -net user", nullptr},
        Case{R"(-netdev {"type":"user","id":"n","hostfwd":[{"str":"tcp::1-:1"}]})",
             R"(-netdev {"type":"user","id":"n"})", nullptr},
        Case{"-netdev tap,id=n,script=/etc/up", "-netdev tap,id=n,script=/etc/up", nullptr},
        Case{"-netdev bridge,id=n,br=br0", "-netdev bridge,id=n,br=br0", nullptr},
        Case{"-netdev socket,id=n,connect=10.0.0.1:1234",
             "-netdev socket,id=n,connect=10.0.0.1:1234", nullptr},
        Case{"-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/n.sock",
             "-netdev stream,id=n,server=on,addr.type=unix,addr.path=/run/pf/vm/1/n.sock", nullptr},
        Case{R"(-netdev {"type":"dgram","id":"n","local":{"type":"unix","path":"/run/n"}})",
             R"(-netdev {"type":"dgram","id":"n","local":{"type":"unix","path":"/run/pf/vm/1/n"}})",
             nullptr},
        Case{"-nic none", "-nic none", nullptr}));

INSTANTIATE_TEST_SUITE_P(
    MemoryBackends, OptionBecomes,
    testing::Values(
        Case{"-object memory-backend-memfd,id=m,size=1G,share=on",
             "-object memory-backend-memfd,id=m,size=1G,share=on", nullptr},
        Case{"-object memory-backend-file,id=m,size=1G,mem-path=/dev/hugepages,share=on",
             "-object memory-backend-file,id=m,size=1G,mem-path=/dev/hugepages,share=on", nullptr},
        Case{
            "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web,share=on",
            "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web.pageferry-1-0,share=on",
            "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web,share=on"},
        Case{"-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web",
             "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web", nullptr},
        Case{
            R"(-object {"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/w","share":true,"size":1048576})",
            R"(-object {"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/w.pageferry-1-0","share":true,"size":1048576})",
            R"(-object {"qom-type":"memory-backend-file","id":"m","mem-path":"/dev/shm/w","share":true,"size":1048576})"}));

struct MachineCase {
  const char* source;
  const char* expected;
};
class MachineTypeBecomes : public testing::TestWithParam<MachineCase> {};

TEST_P(MachineTypeBecomes, VersionedExactlyOnce) {
  const auto command =
      make_destination_command(words_of(GetParam().source), place(DestinationHost::same));
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(line(command->argv), GetParam().expected + kOurs);
}

INSTANTIATE_TEST_SUITE_P(
    Spellings, MachineTypeBecomes,
    testing::Values(
        MachineCase{"qemu -m 1G", "qemu -machine pc-q35-7.2 -m 1G"},
        MachineCase{"qemu -m 1G -M q35", "qemu -m 1G -M pc-q35-7.2"},
        MachineCase{"qemu -machine type=q35,accel=kvm:tcg",
                    "qemu -machine pc-q35-7.2,accel=kvm:tcg"},
        MachineCase{"qemu -machine q35,accel=kvm,memory-backend=m",
                    "qemu -machine pc-q35-7.2,accel=kvm,memory-backend=m"},
        MachineCase{"qemu -machine accel=kvm -M q35", "qemu -machine pc-q35-7.2,accel=kvm"},
        MachineCase{"qemu -M pc-q35-7.2 -machine smm=off", "qemu -M pc-q35-7.2 -machine smm=off"}));

struct RefusalCase {
  const char* source;
  const char* reason;
  bool on_other_host_too;
};
class IsRefused : public testing::TestWithParam<RefusalCase> {};

TEST_P(IsRefused, WithOneLineThatNamesTheOption) {
  const auto command = make_destination_command(words_of(std::string("qemu ") + GetParam().source),
                                                place(DestinationHost::same));
  ASSERT_FALSE(command) << line(command->argv);
  EXPECT_EQ(command.error().code, Errc::invalid);
  EXPECT_THAT(command.error().message, HasSubstr(words_of(GetParam().source)[0]));
  EXPECT_THAT(command.error().message, HasSubstr(GetParam().reason));
  EXPECT_THAT(command.error().message, HasSubstr("--incoming-command"));
  EXPECT_THAT(command.error().message, Not(HasSubstr("\n")));
}

TEST_P(IsRefused, OnAnotherHostOnlyIfItMeansNothingThere) {
  const auto command = make_destination_command(words_of(std::string("qemu ") + GetParam().source),
                                                place(DestinationHost::other));
  EXPECT_EQ(command.has_value(), !GetParam().on_other_host_too);
}

INSTANTIATE_TEST_SUITE_P(
    Options, IsRefused,
    testing::Values(
        RefusalCase{"-loadvm snap1", "loaded over", true},
        RefusalCase{"-snapshot", "overlays", true},
        RefusalCase{"-drive file=a,snapshot=on", "overlay", true},
        RefusalCase{"-add-fd fd=3,set=1", "descriptor", true},
        RefusalCase{"-readconfig /etc/vm.cfg", "cannot be rewritten", true},
        RefusalCase{"-drive file=/dev/fdset/1", "descriptor set", true},
        RefusalCase{"-chardev socket,id=charmonitor,fd=25,server=on,wait=off", "descriptor number",
                    true},
        RefusalCase{"-netdev tap,fd=27,id=hostnet0,vhost=on,vhostfd=29", "descriptor number", true},
        RefusalCase{R"(-netdev {"type":"tap","fds":"27:28","id":"n"})", "descriptor number", true},
        RefusalCase{"-netdev stream,id=n,addr.type=fd,addr.str=5", "descriptor number", true},
        RefusalCase{"-netdev vhost-vdpa,id=n,vhostdev=/dev/vhost-vdpa-0", "vDPA", true},
        RefusalCase{"-netdev vhost-user,id=n,chardev=c", "serves one QEMU", true},
        RefusalCase{"-chroot /var/empty", "only root", true},
        RefusalCase{"-run-with chroot=/x", "only root", true},
        RefusalCase{"-preconfig", "x-exit-preconfig", true},
        RefusalCase{"-set chardev.a.path=/x", "-set device", true},
        RefusalCase{"-frobnicate", "not known", true},
        RefusalCase{"-netdev tap,id=n,ifname=tap100i0,script=no", "tap100i0 belongs to the source",
                    false},
        RefusalCase{"-netdev socket,id=n,listen=:1234", "in use by the source", false},
        RefusalCase{"-netdev stream,id=n,server=on,addr.type=inet,addr.host=0,addr.port=9",
                    "in use by the source", false},
        RefusalCase{"-device vhost-vsock-pci,guest-cid=3", "guest-cid 3", false},
        RefusalCase{"-serial /dev/ttyS0", "device of the host", false},
        RefusalCase{"-chardev serial,id=s,path=/dev/ttyS0", "device of the host", false}));

TEST(DestinationCommandTest, ProxmoxCommandLineOnAnotherHost) {
  const auto command = make_destination_command(
      {"/usr/bin/kvm",
       "-id",
       "100",
       "-name",
       "web,debug-threads=on",
       "-no-shutdown",
       "-chardev",
       "socket,id=qmp,path=/var/run/qemu-server/100.qmp,server=on,wait=off",
       "-mon",
       "chardev=qmp,mode=control",
       "-chardev",
       "socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5",
       "-mon",
       "chardev=qmp-event,mode=control",
       "-pidfile",
       "/var/run/qemu-server/100.pid",
       "-daemonize",
       "-smbios",
       "type=1,uuid=8a",
       "-smp",
       "2,sockets=1,cores=2,maxcpus=2",
       "-nodefaults",
       "-vnc",
       "unix:/var/run/qemu-server/100.vnc,password=on",
       "-cpu",
       "kvm64,+lahf_lm",
       "-m",
       "2048",
       "-netdev",
       "type=tap,id=net0,ifname=tap100i0,script=/var/lib/qemu-server/pve-bridge,vhost=on",
       "-machine",
       "type=pc+pve0"},
      place(DestinationHost::other));
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_EQ(
      line(command->argv),
      "/usr/bin/kvm -id 100 -name web,debug-threads=on -no-shutdown"
      " -chardev socket,id=qmp,path=/run/pf/vm/1/100.qmp,server=on,wait=off -mon "
      "chardev=qmp,mode=control"
      " -chardev socket,id=qmp-event,path=/var/run/qmeventd.sock,reconnect=5 -mon "
      "chardev=qmp-event,mode=control"
      " -pidfile /run/pf/vm/1/100.pid -smbios type=1,uuid=8a -smp 2,sockets=1,cores=2,maxcpus=2 "
      "-nodefaults"
      " -vnc unix:/run/pf/vm/1/100.vnc,password=on -cpu kvm64,+lahf_lm -m 2048"
      " -netdev type=tap,id=net0,ifname=tap100i0,script=/var/lib/qemu-server/pve-bridge,vhost=on "
      "-machine pc-q35-7.2" +
          kOurs);
}

TEST(DestinationCommandTest, NamesWhatMustBeDoneOutsideTheCommandLine) {
  const auto command = make_destination_command(
      words_of(
          "qemu -netdev user,id=n,hostfwd=tcp::2222-:22 -chardev pipe,id=p,path=/tmp/p -object "
          "memory-backend-file,id=m,size=1G,mem-path=/dev/shm/web,share=on"),
      place(DestinationHost::same));
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(command->fifos, ElementsAre("/run/pf/vm/1/p.in", "/run/pf/vm/1/p.out"));
  EXPECT_THAT(command->files_made, ElementsAre("/dev/shm/web.pageferry-1-0"));
  EXPECT_EQ(command->qmp_socket, "/run/pf/vm/1/pageferry-qmp.sock");
  EXPECT_EQ(command->out_of_band_socket, "/run/pf/vm/1/pageferry-oob.sock");
}

TEST(DestinationCommandTest, NotesSayWhatIsFoundElsewhere) {
  const auto moved = make_destination_command(
      words_of("qemu -vnc :1 -qmp unix:/tmp/q,server=on,wait=off"), place(DestinationHost::same));
  ASSERT_TRUE(moved);
  EXPECT_THAT(moved->notes, Contains(HasSubstr("VNC: display :1")));
  EXPECT_THAT(moved->notes, Contains(HasSubstr("/run/pf/vm/1/q instead of /tmp/q")));
  const auto plain = make_destination_command(words_of("qemu -m 1G"), place(DestinationHost::same));
  ASSERT_TRUE(plain);
  EXPECT_THAT(plain->notes, IsEmpty());
}

TEST(DestinationCommandTest, SocketNamesThatWouldNotFitAreShortened) {
  const auto command =
      make_destination_command(words_of("qemu -qmp unix:/a/" + std::string(90, 'x') + ",server=on"),
                               place(DestinationHost::same, "/run/" + std::string(60, 'd')));
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(command->argv,
              Contains("unix:/run/" + std::string(60, 'd') + "/s0.sock,server=on,wait=off"));
}

TEST(DestinationCommandTest, RelativeRunDirectoryAndBadMachineTypeAreRefused) {
  auto bad = place(DestinationHost::same, "run/1");
  EXPECT_FALSE(make_destination_command({"qemu"}, bad));
  bad = place(DestinationHost::same);
  bad.machine_type = "pc,accel=tcg";
  EXPECT_FALSE(make_destination_command({"qemu"}, bad));
}

TEST(IncomingCommandTest, PutsThePathInEverywhere) {
  const auto command = make_destination_command_from_template(
      "run -qmp unix:{qmp},server=on,wait=off; ls {qmp}", "/run/pf/vm/1");
  ASSERT_TRUE(command) << command.error().message;
  EXPECT_THAT(command->argv,
              ElementsAre("/bin/sh", "-c",
                          "run -qmp unix:/run/pf/vm/1/pageferry-qmp.sock,server=on,wait=off; ls "
                          "/run/pf/vm/1/pageferry-qmp.sock"));
}

TEST(IncomingCommandTest, WithoutPlaceholderIsRefused) {
  const auto command =
      make_destination_command_from_template("qemu -incoming defer", "/run/pf/vm/1");
  ASSERT_FALSE(command);
  EXPECT_THAT(command.error().message, HasSubstr("{qmp}"));
}

TEST(IncomingCommandTest, PathThatAShellWouldTakeApartIsRefused) {
  EXPECT_FALSE(make_destination_command_from_template("{qmp}", "/run/a b"));
  EXPECT_FALSE(make_destination_command_from_template("{qmp}", "/run/$(id)"));
  EXPECT_FALSE(make_destination_command_from_template("{qmp}", "/run/a,b"));
}

}  // namespace
}  // namespace pageferry
