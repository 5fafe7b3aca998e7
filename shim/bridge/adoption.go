package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What is kept of a bridge on its row, under external_ids. It outlives us, the
// switch and the state folder, so that nothing is taken for a bridge that we
// never saw, and what was found can be put back.
const (
	idAdoption    = "weir-adoption" // adoptionRunning or adoptionDone
	idMade        = "weir-made"     // "true": we made the bridge
	idFailMode    = "weir-found-fail-mode"
	idProtocols   = "weir-found-protocols"
	idDatapath    = "weir-found-datapath-type"
	idAddress     = "weir-found-hwaddr"
	idEstablished = "weir-established-until" // Unix time, seconds
	idRecovery    = "weir-recovery-until"    // the same

	adoptionRunning = "running"
	adoptionDone    = "done"
)

// UnfitError says why an existing bridge cannot be adopted as it is. Nothing of
// it was changed.
type UnfitError struct{ Bridge, Why string }

// Error names the bridge and what is in the way.
func (e *UnfitError) Error() string {
	return fmt.Sprintf("bridge %s cannot be adopted: %s", e.Bridge, e.Why)
}

// Standing is how a bridge stands to us.
type Standing struct {
	// Adopting says that others' flows may serve it: SetUp must not be called,
	// and Close ends it.
	Adopting bool
	// EstablishedUntil is what the last Close was given.
	EstablishedUntil time.Time
	// Ours says that the bridge was ours alone before.
	Ours bool
	// RecoveryUntil is what KeepRecovery was given last.
	RecoveryUntil time.Time
}

// Find says how the bridge stands to us, and begins an adoption where one is
// called for: there is a bridge, no record of ours on its row, no flow of ours
// in it, and the caller knows nothing of it either. Then what was found is
// recorded and OpenFlow is enabled, and nothing else is touched.
func (b *Bridge) Find(ctx context.Context, known bool) (Standing, error) {
	row, err := b.readRow(ctx)
	if err != nil || row == nil {
		return Standing{}, err
	}
	var s Standing
	s.EstablishedUntil, s.RecoveryUntil = timeOf(row.ids[idEstablished]), timeOf(row.ids[idRecovery])
	s.Ours = row.ids[idAdoption] == adoptionDone
	switch {
	case row.ids[idAdoption] == adoptionRunning:
		s.Adopting = true
		return s, nil
	case row.ids[idAdoption] != "" || known:
		return s, nil
	}
	ours, err := b.command(ctx, "ovs-ofctl", "-O", "OpenFlow10,OpenFlow11,OpenFlow12,OpenFlow13,OpenFlow14,OpenFlow15", "dump-flows", b.cfg.Name,
		fmt.Sprintf("cookie=%#x/%#x", b.cfg.Mark.Value, b.cfg.Mark.Mask))
	if err != nil {
		return Standing{}, fmt.Errorf("look for flows of ours on bridge %s: %w", b.cfg.Name, err)
	}
	if strings.Contains(string(ours), "cookie=") {
		return s, nil
	}
	if err := b.fit(ctx, row); err != nil {
		return Standing{}, err
	}
	speak := row.protocols
	if len(speak) > 0 { // None: all that the switch knows.
		speak = slices.Compact(slices.Sorted(slices.Values(slices.Concat(speak, protocols))))
	}
	args := []string{"set", "bridge", b.cfg.Name, "protocols=" + quoteSet(speak)}
	for key, value := range map[string]string{idAdoption: adoptionRunning, idFailMode: row.failMode, idProtocols: strings.Join(row.protocols, ","),
		idDatapath: row.datapath, idAddress: row.address} {
		args = append(args, fmt.Sprintf("external_ids:%s=%s", key, quote(value)))
	}
	if _, err := b.vsctl(ctx, args...); err != nil {
		return Standing{}, fmt.Errorf("record what was found of bridge %s: %w", b.cfg.Name, err)
	}
	s.Adopting = true
	return s, nil
}

// timeOf reads a time that is kept in seconds; what is none is the zero time.
func timeOf(text string) time.Time {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}

// fit says what of a bridge we could not take over.
func (b *Bridge) fit(ctx context.Context, row *settings) error {
	unfit := func(format string, args ...any) error {
		return &UnfitError{b.cfg.Name, fmt.Sprintf(format, args...)}
	}
	kind := row.datapath
	if kind == "" {
		kind = "system"
	}
	if kind != b.cfg.DatapathType {
		return unfit("its datapath type is %s, and to make it %s would rebuild it", kind, b.cfg.DatapathType)
	}
	if row.controllers > 0 {
		return unfit("it has an OpenFlow controller, which would go on writing flows (ovs-vsctl del-controller %s)", b.cfg.Name)
	}
	ports, err := b.list(ctx, "port", "", "_uuid", "name", "interfaces", "tag", "trunks", "vlan_mode")
	if err != nil {
		return err
	}
	for _, p := range ports {
		name, _ := p["name"].(string)
		if id, _ := scalar(p["_uuid"]).(string); !slices.Contains(row.ports, id) {
			continue
		}
		if len(set(p["interfaces"])) > 1 {
			return unfit("port %s is a bond", name)
		}
		if len(set(p["tag"]))+len(set(p["trunks"]))+len(set(p["vlan_mode"])) > 0 {
			return unfit("port %s is in a VLAN, and Pods' forwarding knows none", name)
		}
	}
	return nil
}

// Close makes the bridge ours alone: it fails closed, keeps its address, and is
// never taken for one to be adopted again. A change of the fail mode empties the
// flow tables, and not at once: what is left of the flows meanwhile could let
// through what all of them deny. So empty, which is to take them out as one, is
// called right before; put them in again at once. Until is kept for Standing.
func (b *Bridge) Close(ctx context.Context, until time.Time, empty func(context.Context) error) error {
	if err := b.keepAddress(ctx); err != nil {
		return err
	}
	if err := empty(ctx); err != nil {
		return fmt.Errorf("empty bridge %s: %w", b.cfg.Name, err)
	}
	args := []string{"set", "bridge", b.cfg.Name, "fail_mode=secure", "external_ids:" + idAdoption + "=" + adoptionDone}
	if !until.IsZero() {
		args = append(args, fmt.Sprintf("external_ids:%s=%d", idEstablished, until.Unix()))
	}
	if _, err := b.vsctl(ctx, args...); err != nil {
		return fmt.Errorf("close bridge %s: %w", b.cfg.Name, err)
	}
	b.guarding.guard()
	return nil
}

// Exists says whether there is a bridge of the name.
func (b *Bridge) Exists(ctx context.Context) (bool, error) {
	row, err := b.readRow(ctx)
	return row != nil, err
}

// Restore gives the bridge the settings that were found, or where we made it or
// found nothing on record, those of a plain bridge; its address stays. A change
// of the fail mode empties the flow tables, and the switch itself then forwards.
// Our record is removed, except that we made it.
func (b *Bridge) Restore(ctx context.Context) (made bool, err error) {
	row, err := b.readRow(ctx)
	if err != nil || row == nil {
		return false, err
	}
	// A bridge that nobody of ours has a record of is as somebody wants it.
	if row.ids[idAdoption] != "" {
		mode := []string{"clear", "bridge", b.cfg.Name, "fail_mode"}
		if found := row.ids[idFailMode]; found != "" {
			mode = []string{"set", "bridge", b.cfg.Name, "fail_mode=" + found}
		}
		if _, err := b.vsctl(ctx, mode...); err != nil {
			return false, fmt.Errorf("restore fail mode of bridge %s: %w", b.cfg.Name, err)
		}
		args := []string{"clear", "bridge", b.cfg.Name, "protocols"}
		if found := row.ids[idProtocols]; found != "" {
			args = []string{"set", "bridge", b.cfg.Name, "protocols=" + quoteSet(strings.Split(found, ","))}
		}
		args = append(args, "--", "remove", "bridge", b.cfg.Name, "external_ids", idAdoption, idFailMode, idProtocols, idDatapath, idAddress, idEstablished, idRecovery)
		if _, err := b.vsctl(ctx, args...); err != nil {
			return false, fmt.Errorf("restore bridge %s: %w", b.cfg.Name, err)
		}
	}
	return row.ids[idMade] == "true", nil
}

// AntreaBridges are the bridges of this switch that bear the marks of Antrea's
// agent.
func (b *Bridge) AntreaBridges(ctx context.Context) ([]string, error) {
	bridges, err := b.list(ctx, "bridge", "", "name", "ports", "external_ids")
	if err != nil {
		return nil, err
	}
	ports, err := b.list(ctx, "port", "", "_uuid", "interfaces", "external_ids")
	if err != nil {
		return nil, err
	}
	interfaces, err := b.list(ctx, "interface", "", "_uuid", "external_ids")
	if err != nil {
		return nil, err
	}
	marked := make(map[any]bool) // Rows, by id.
	for _, r := range interfaces {
		marked[scalar(r["_uuid"])] = pairs(r["external_ids"])["antrea-type"] != ""
	}
	any := func(ids []any) bool { return slices.ContainsFunc(ids, func(id any) bool { return marked[scalar(id)] }) }
	for _, r := range ports {
		marked[scalar(r["_uuid"])] = pairs(r["external_ids"])["antrea-type"] != "" || any(set(r["interfaces"]))
	}
	var out []string
	for _, r := range bridges {
		if name, _ := r["name"].(string); pairs(r["external_ids"])["roundNum"] != "" || any(set(r["ports"])) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// settings are the row of our bridge.
type settings struct {
	failMode, datapath, address string
	protocols, ports            []string
	controllers                 int
	ids                         map[string]string
}

// readRow reads the row of our bridge; nil where there is none.
func (b *Bridge) readRow(ctx context.Context) (*settings, error) {
	rows, err := b.list(ctx, "bridge", b.cfg.Name, "fail_mode", "datapath_type", "protocols", "other_config", "external_ids", "controller", "ports")
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	r := rows[0]
	s := &settings{address: pairs(r["other_config"])["hwaddr"], controllers: len(set(r["controller"])), ids: pairs(r["external_ids"])}
	s.datapath, _ = r["datapath_type"].(string)
	for _, v := range set(r["fail_mode"]) {
		s.failMode, _ = v.(string)
	}
	for _, v := range set(r["protocols"]) {
		if p, ok := v.(string); ok {
			s.protocols = append(s.protocols, p)
		}
	}
	for _, v := range set(r["ports"]) {
		if id, ok := scalar(v).(string); ok {
			s.ports = append(s.ports, id)
		}
	}
	return s, nil
}

// list reads columns of a table: of all rows, or of the one that bears a name,
// if it is there. Values are as OVSDB writes them in JSON.
func (b *Bridge) list(ctx context.Context, table, record string, columns ...string) ([]map[string]any, error) {
	args := []string{"--format=json", "--if-exists", "--columns=" + strings.Join(columns, ","), "list", table}
	if record != "" {
		args = append(args, record)
	}
	out, err := b.vsctl(ctx, args...)
	if err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	if len(strings.TrimSpace(string(out))) == 0 {
		return nil, nil
	}
	var reply struct {
		Headings []string
		Data     [][]any
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return nil, fmt.Errorf("read table %s: %w", table, err)
	}
	var rows []map[string]any
	for _, values := range reply.Data {
		if len(values) != len(reply.Headings) {
			return nil, errors.New("read table " + table + ": a row of other columns")
		}
		row := make(map[string]any)
		for i, name := range reply.Headings {
			row[name] = values[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// set are the elements of a value: one that is not a set is its own element.
func set(v any) []any {
	if pair, ok := v.([]any); ok && len(pair) == 2 && pair[0] == "set" {
		list, _ := pair[1].([]any)
		return list
	}
	return []any{v}
}

// scalar is a value without what says that it is a row's id.
func scalar(v any) any {
	if pair, ok := v.([]any); ok && len(pair) == 2 && pair[0] == "uuid" {
		return pair[1]
	}
	return v
}

// pairs is a map of strings.
func pairs(v any) map[string]string {
	out := make(map[string]string)
	if pair, ok := v.([]any); ok && len(pair) == 2 && pair[0] == "map" {
		list, _ := pair[1].([]any)
		for _, e := range list {
			if kv, ok := e.([]any); ok && len(kv) == 2 {
				key, _ := kv[0].(string)
				out[key], _ = kv[1].(string)
			}
		}
	}
	return out
}

// quoteSet writes a set of strings as OVSDB's command line reads it.
func quoteSet(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ",") + "]"
}
