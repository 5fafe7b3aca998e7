package audit

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/services/audit/record"
)

// BenchmarkBesideRsyslog brings the same records to a real weir-auditd, by Report
// from four nodes until all are acknowledged, and to a real rsyslogd, as RFC 5424
// over four connections (imtcp) until all are in its file, which it writes
// synchronously. An operation is one record. Rsyslog acknowledges nothing, so its
// time is to when the file has all; it takes 4,096 lines to a sync, where its
// defaults take eight. CPU is the receiving process's.
func BenchmarkBesideRsyslog(b *testing.B) {
	const senders, batch = 4, 512
	if !executable("/usr/sbin/rsyslogd") {
		b.Skip("rsyslogd is not installed")
	}
	events, lines := make([][]byte, batch), make([][]byte, batch)
	format, decoder := record.DefaultSyslog(), record.NewDecoder()
	for i := range events {
		var err error
		if events[i], err = proto.Marshal(drop(uint32(i))); err != nil {
			b.Fatal(err)
		}
		event, err := decoder.Decode(events[i])
		if err != nil {
			b.Fatal(err)
		}
		l := record.Line{Record: record.Record{Cursor: uint64(i + 1), Node: "n1", Boot: "b", Sequence: uint64(i + 1), Event: event}, Packets: 1}
		lines[i] = append(format.Append(nil, &l), '\n')
	}
	each := max(1, b.N/senders/batch)
	total := senders * each * batch

	addr, pid := startAuditdBench(b)
	cpu := processCPU(b, pid)
	b.ResetTimer()
	inParallel(senders, func(n int) {
		load{addr: addr, node: fmt.Sprint("n", n), boot: "b", events: events, batches: each, window: 8}.send(b)
	})
	took := b.Elapsed()
	cpu = processCPU(b, pid) - cpu
	b.StopTimer()

	port, file, pid := startRsyslogBench(b)
	theirCPU := processCPU(b, pid)
	begun := time.Now()
	inParallel(senders, func(int) { sendLines(b, port, lines, each) })
	awaitLines(b, file, total)
	theirs := time.Since(begun)
	theirCPU = processCPU(b, pid) - theirCPU

	per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(total) }
	b.ReportMetric(float64(total)/took.Seconds(), "events/s")
	b.ReportMetric(float64(total)/theirs.Seconds(), "rsyslog-lines/s")
	b.ReportMetric(theirs.Seconds()/took.Seconds(), "ratio")
	b.ReportMetric(per(cpu), "cpu-us/event")
	b.ReportMetric(per(theirCPU), "rsyslog-cpu-us/line")
}

func inParallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// startAuditdBench runs the real collector without sinks.
func startAuditdBench(b *testing.B) (addr string, pid int) {
	dir := b.TempDir()
	binary := filepath.Join(dir, "weir-auditd")
	if out, err := exec.Command("go", "build", "-o", binary, "github.com/weirnet/weir/services/cmd/weir-auditd").CombinedOutput(); err != nil {
		b.Fatalf("build: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	return addr, runProcess(b, addr, binary, "--dir", filepath.Join(dir, "log"), "--listen", addr, "--metrics-listen", "", "--np-log-dir", "", "--log-level", "warn")
}

func startRsyslogBench(b *testing.B) (addr, file string, pid int) {
	dir := b.TempDir()
	file = filepath.Join(dir, "received")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	conf := fmt.Sprintf(`global(workDirectory=%q)
module(load="imtcp")
template(name="raw" type="string" string="%%rawmsg%%\n")
input(type="imtcp" address="127.0.0.1" port="%d" ruleset="weir")
ruleset(name="weir" queue.type="FixedArray" queue.size="200000" queue.dequeueBatchSize="4096" queue.workerThreads="1") {
  action(type="omfile" file=%q template="raw" sync="on" ioBufferSize="1m")
}
`, dir, port, file)
	path := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	return addr, file, runProcess(b, addr, "/usr/sbin/rsyslogd", "-n", "-f", path, "-i", filepath.Join(dir, "pid"))
}

// runProcess runs a process until the benchmark ends, and waits until it listens.
func runProcess(b *testing.B, addr, name string, args ...string) (pid int) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return cmd.Process.Pid
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s does not listen at %s", name, addr)
		}
	}
}

// processCPU is what a process has used, in ticks of 10 ms.
func processCPU(b *testing.B, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] { // utime and stime: proc(5).
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

func sendLines(b *testing.B, addr string, lines [][]byte, times int) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Error(err)
		return
	}
	defer conn.Close()
	w := bufio.NewWriterSize(conn, 64<<10)
	for range times {
		for _, l := range lines {
			if _, err := w.Write(l); err != nil {
				b.Error(err)
				return
			}
		}
	}
	if err := w.Flush(); err != nil {
		b.Error(err)
	}
}

// awaitLines waits until a file has so many lines, of which it reads each once.
func awaitLines(b *testing.B, path string, total int) {
	var f *os.File
	buf := make([]byte, 1<<20)
	lines := 0
	for deadline := time.Now().Add(2 * time.Minute); lines < total; {
		if f == nil {
			if f, _ = os.Open(path); f != nil {
				defer f.Close()
			}
		}
		n := 0
		if f != nil {
			n, _ = f.Read(buf)
			lines += strings.Count(string(buf[:n]), "\n")
		}
		if n == 0 {
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d lines", lines, total)
			}
			time.Sleep(time.Millisecond) // The file has no way to tell.
		}
	}
	if lines != total {
		b.Fatalf("%d lines of %d", lines, total)
	}
}
