package kubernetes

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// journal is a mirror of ConfigMaps whose value is the text under "v", and what
// it told.
type journal struct {
	*mirror[string]
	told []string
	at   uint64
}

func newJournal() *journal {
	j := &journal{}
	j.mirror = newMirror(func(o runtime.Object) (string, error) {
		v := o.(*corev1.ConfigMap).Data["v"]
		if v == "bad" {
			return "", errors.New("bad value")
		}
		return v, nil
	}, func(k key, now *entry[string], at uint64) {
		switch {
		case now == nil:
			j.told = append(j.told, fmt.Sprintf("%s gone at %d", k.name, at))
		case now.err != nil:
			j.told = append(j.told, fmt.Sprintf("%s unreadable at %d", k.name, at))
		default:
			j.told = append(j.told, fmt.Sprintf("%s=%s at %d", k.name, now.value, at))
		}
	}, func(version uint64, whole bool) {
		j.at = version
		if whole {
			j.told = append(j.told, fmt.Sprintf("whole at %d", version))
		}
	})
	return j
}

func object(name, value, version string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: name, ResourceVersion: version}, Data: map[string]string{"v": value}}
}

func TestMirrorTellsWhatDiffers(t *testing.T) {
	j := newJournal()
	steps := []struct {
		name string
		do   func() error
		want string
		at   uint64
	}{
		{"a list", func() error { return j.Replace([]any{object("a", "1", "5"), object("b", "1", "7")}, "9") }, "a=1 at 5, b=1 at 7, whole at 9", 9},
		{"a new object", func() error { return j.Add(object("c", "1", "10")) }, "c=1 at 10", 10},
		{"a change", func() error { return j.Update(object("a", "2", "11")) }, "a=2 at 11", 11},
		{"a change of nothing that is read", func() error { return j.Update(object("a", "2", "12")) }, "", 12},
		{"an object that cannot be read", func() error { return j.Update(object("a", "bad", "13")) }, "a unreadable at 13", 13},
		{"and still cannot", func() error { return j.Update(object("a", "bad", "14")) }, "", 14},
		{"a deletion", func() error { return j.Delete(object("b", "1", "15")) }, "b gone at 15", 15},
		{"another of it", func() error { return j.Delete(object("b", "1", "16")) }, "", 16},
		{"a bookmark", func() error { return j.Bookmark("20") }, "", 20},
		{"a list after a gap", func() error { return j.Replace([]any{object("a", "3", "25"), object("d", "1", "26")}, "30") }, "a=3 at 25, d=1 at 26, c gone at 0, whole at 30", 30},
		{"the same list again", func() error { return j.Replace([]any{object("a", "3", "25"), object("d", "1", "26")}, "31") }, "whole at 31", 31},
		{"the kind ends", func() error { j.clear(); return nil }, "a gone at 0, d gone at 0", 31},
	}
	for _, s := range steps {
		j.told = nil
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if s.name == "the kind ends" {
			slices.Sort(j.told)
		}
		if got := strings.Join(j.told, ", "); got != s.want || j.at != s.at {
			t.Errorf("%s: told %q at %d, want %q at %d", s.name, got, j.at, s.want, s.at)
		}
	}
}

// A list that comes as a stream is converted on its way, and once.
func TestMirrorTakesWhatItConverted(t *testing.T) {
	j := newJournal()
	var list []any
	for _, o := range []any{object("a", "1", "5"), object("b", "bad", "6")} {
		e, err := j.Transformer()(o)
		if err != nil {
			t.Fatal(err)
		}
		again, err := j.Transformer()(e)
		if err != nil || again != e {
			t.Errorf("converted twice: %v, %v", again, err)
		}
		k, err := cache.DeletionHandlingMetaNamespaceKeyFunc(e)
		if want := "x/" + o.(*corev1.ConfigMap).Name; err != nil || k != want {
			t.Errorf("key %q, %v, want %q", k, err, want)
		}
		list = append(list, e)
	}
	if err := j.Replace(list, "9"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(j.told, ", "); got != "a=1 at 5, b unreadable at 6, whole at 9" {
		t.Errorf("told %q", got)
	}
}

func TestMirrorRefusesWhatIsNoObject(t *testing.T) {
	j := newJournal()
	for name, err := range map[string]error{
		"no version":           j.Add(object("a", "1", "")),
		"a version of letters": j.Add(object("a", "1", "abc")),
		"no object":            j.Add(7),
		"a list without one":   j.Replace(nil, ""),
	} {
		if err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if len(j.told) > 0 {
		t.Errorf("told %v", j.told)
	}
}
