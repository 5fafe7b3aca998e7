package invariant

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// lineKey is what lines of merged records have in common.
type lineKey struct{ node, table, direction, action, appliedTo string }

// lineKeyOf is the key of words as records or files have them: of what is not known
// they say so in different ways.
func lineKeyOf(node string, words ...string) lineKey {
	for i, w := range words {
		if w == "<nil>" || w == "unspecified" {
			words[i] = ""
		}
	}
	return lineKey{node, words[0], words[1], words[2], words[3]}
}

func (k lineKey) compare(other lineKey) int {
	return cmp.Compare(fmt.Sprint(k), fmt.Sprint(other))
}

// sums compares what files say with what the event log says, key by key.
func (f *Finding) sums(what string, files, log map[lineKey]uint64) {
	all := maps.Clone(files)
	maps.Copy(all, log)
	for _, key := range slices.SortedFunc(maps.Keys(all), lineKey.compare) {
		f.Checked += int(log[key])
		if files[key] != log[key] {
			f.violation("%s: lines of %+v have %d packets, and the event log has %d", what, key, files[key], log[key])
		}
	}
}

// logged are the packets of the event log.
func (j *judge) logged(only func(*Record) bool) map[lineKey]uint64 {
	out := make(map[lineKey]uint64)
	for i := range j.Records {
		if r := &j.Records[i]; r.Kind == "packet" && only(r) {
			out[lineKeyOf(r.Node, r.Table, r.Direction, r.Action, r.AppliedTo)] += r.Count
		}
	}
	return out
}

// json: the JSON lines are the event log's, each record once.
func (j *judge) json() Finding {
	out := Finding{Invariant: "JSON lines are the event log", Unit: "packets"}
	if j.Final.Unwritten != "" {
		out.violation("%s", j.Final.Unwritten)
	}
	packets, seen := make(map[lineKey]uint64), make(map[uint64]bool)
	for n, line := range j.Files[JSONFile].Lines {
		var r struct {
			Cursor uint64
			Node   string
			Packet *struct {
				Count                               uint64
				Direction, Action, Table, AppliedTo string
			}
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			out.violation("line %d is torn: %v: %q", n+1, err, line)
			continue
		}
		if seen[r.Cursor] {
			out.violation("line %d: a second line of record %d", n+1, r.Cursor)
		}
		seen[r.Cursor] = true
		if p := r.Packet; p != nil {
			packets[lineKeyOf(r.Node, p.Table, p.Direction, p.Action, p.AppliedTo)] += p.Count
		}
	}
	for _, r := range j.Records { // Those that are not merged with others.
		if (r.Kind != "packet" || r.Action == "allow") && !seen[r.Cursor] {
			out.violation("record %+v has no line", r.Key)
		}
	}
	out.sums(JSONFile, packets, j.logged(func(*Record) bool { return true }))
	return out
}

var (
	npLine   = regexp.MustCompile(`^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} (\S+) \S+ (?:<nil>|\S+) (Ingress|Egress|<nil>) (Allow|Drop|Reject|Redirect|<nil>) (?:<nil>|\d+) (\S+) .*?(?: \[(\d+) packets in \S+\])?$`)
	unprints = []string{"staged", "spoof", "observed"} // Reasons of what np.log is not told.
)

// npLog: the lines of np.log add up to what the event log has.
func (j *judge) npLog() Finding {
	out := Finding{Invariant: "np.log adds up to the event log", Unit: "packets"}
	packets := make(map[lineKey]uint64)
	for node, file := range j.Files {
		if node == JSONFile {
			continue
		}
		for n, line := range file.Lines {
			m := npLine.FindStringSubmatch(line)
			if m == nil {
				out.violation("%s: line %d is torn: %q", node, n+1, line)
				continue
			}
			count := uint64(1)
			if m[5] != "" {
				count, _ = strconv.ParseUint(m[5], 10, 64) // Of digits alone.
			}
			packets[lineKeyOf(node, m[1], strings.ToLower(m[2]), strings.ToLower(m[3]), m[4])] += count
		}
	}
	out.sums("np.log", packets, j.logged(func(r *Record) bool { return !slices.Contains(unprints, r.Reason) }))
	return out
}
