package churn

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pair is a link and the other end of its connection.
func pair(t *testing.T) (n *network, l *link, far net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	n = newNetwork(1, time.Hour)
	if _, err := n.dial(t.Context(), "there"); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Fatalf("dial of an address that is not open: %v", err)
	}
	n.open("there", listener.Addr().String())
	conn, err := n.dial(t.Context(), "there")
	if err != nil {
		t.Fatal(err)
	}
	far, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); far.Close() })
	return n, conn.(*link), far
}

func TestWhatIsReadIsTruncated(t *testing.T) {
	n, l, far := pair(t)
	l.limit(&l.reads, 3)
	if _, err := far.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(l); string(got) != "hel" || err == nil {
		t.Errorf("read %q, %v", got, err)
	}
	if len(n.links) != 0 {
		t.Error("the link stays")
	}
}

func TestWhatIsWrittenIsTruncated(t *testing.T) {
	_, l, far := pair(t)
	l.limit(&l.writes, 3)
	if written, err := l.Write([]byte("hello")); written != 3 || err == nil {
		t.Errorf("wrote %d, %v", written, err)
	}
	if got, err := io.ReadAll(far); string(got) != "hel" || err != nil {
		t.Errorf("the other end has %q, %v", got, err)
	}
}

func TestAHeldReadGoesOnOnceHealed(t *testing.T) {
	n, l, far := pair(t)
	l.hold(time.Hour)
	if _, err := far.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		p := make([]byte, 5)
		size, _ := io.ReadFull(l, p)
		got <- string(p[:size])
	}()
	select {
	case s := <-got:
		t.Errorf("read %q through a hold", s)
	case <-time.After(20 * time.Millisecond): // What passes comes at once; to wait for longer proves no more.
	}
	n.heal()
	if s := <-got; s != "hello" {
		t.Errorf("read %q", s)
	}
}

func TestASeveredLinkEndsItsHold(t *testing.T) {
	n, l, _ := pair(t)
	l.hold(time.Hour)
	n.sever("there")
	if _, err := l.Read(make([]byte, 1)); err == nil {
		t.Error("a severed link can be read")
	}
}
