package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/digitalocean/go-openvswitch/ovs"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// What of a bridge that is ours is restored where others change it: values that
// Config.Mended is told.
const (
	MendedBridge     = "bridge" // It was removed, or another was made in its place.
	MendedPorts      = "ports"  // That went with it.
	MendedFailMode   = "fail_mode"
	MendedProtocols  = "protocols"
	MendedController = "controller"
	MendedDatapath   = "datapath_type"
	MendedAddress    = "hwaddr"
	MendedDatapathID = "datapath-id"
	MendedRecord     = "record" // That the bridge is ours.
)

// Whoever removes a bridge may be about to make it again, and whoever made it to add
// its ports: so long he has for each.
const guardGrace = 500 * time.Millisecond

// mendTimeout is how long the switch may take to follow what was restored.
const mendTimeout = 2 * time.Second

// guarding follows the bridge's row and restores what others change there. Those
// changes matter at once (a switch that fails open forwards by itself), so it waits for
// nobody: neither for the caller's loop nor, to restore, for the switch.
type guarding struct {
	bridge  *Bridge
	changed chan struct{}

	mu sync.Mutex // Guards what follows.
	on bool       // The bridge is ours alone.

	// Of the goroutine alone.
	known *bridgeRow // As it is to be; nil: not seen yet.
	ports []Port     // That it had.
	gone  time.Time  // Since when it is gone, or another that may lack them; zero: it is neither.
}

// guard has the bridge guarded from now on.
func (g *guarding) guard() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = true
	signal(g.changed)
}

func (g *guarding) guards() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.on
}

// run restores until the context ends.
func (g *guarding) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
		}
		for g.guards() && ctx.Err() == nil {
			again, err := g.look(ctx)
			if err != nil && ctx.Err() == nil {
				g.bridge.log.Error("what others changed of the bridge cannot be restored; trying on", "err", err)
				again = guardGrace
			}
			if again == 0 {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(again):
			case <-g.changed:
			}
		}
	}
}

// look restores what differs, and says after what time to look again; zero: with the
// next change.
func (g *guarding) look(ctx context.Context) (again time.Duration, err error) {
	db, tables := g.bridge.ports.last()
	if db == nil || !db.Connected() {
		return 0, nil // The next copy is a change.
	}
	row, root := rowOf(tables, g.bridge.cfg.Name)
	switch {
	case root == nil || g.known == nil && (row == nil || row.ExternalIDs[idAdoption] != adoptionDone || row.OtherConfig[MendedAddress] == ""):
		return 0, nil // What SetUp or Close wrote has not come yet.
	case row == nil && g.gone.IsZero():
		g.gone = time.Now()
		return guardGrace, nil
	case row == nil && time.Since(g.gone) < guardGrace:
		return guardGrace - time.Since(g.gone), nil
	case row == nil:
		return guardGrace, g.bridge.add(ctx, g.known.OtherConfig[MendedAddress])
	case g.known == nil:
		known := *row
		g.known = &known
	case row.UUID != g.known.UUID:
		g.known.UUID, g.gone = row.UUID, time.Now()
		g.tell(MendedBridge)
		return guardGrace, g.mend(ctx, row, root)
	}
	if err := g.mend(ctx, row, root); err != nil {
		return 0, err
	}
	now := portsOf(tables, g.bridge.cfg.Name)
	switch since := time.Since(g.gone); {
	case g.gone.IsZero():
		g.ports = now
		return 0, nil
	case since < guardGrace:
		return guardGrace - since, nil
	}
	g.gone = time.Time{}
	return guardGrace, g.putBack(ctx, now)
}

// putBack puts the ports back that went with a former bridge. Whose interface is gone
// has an error on its row.
func (g *guarding) putBack(ctx context.Context, now []Port) error {
	var errs []error
	for _, p := range g.ports {
		if p.Local() || slices.ContainsFunc(now, func(q Port) bool { return q.Name == p.Name }) {
			continue
		}
		g.tell(MendedPorts)
		errs = append(errs, g.bridge.addPort(ctx, p))
	}
	return errors.Join(errs...)
}

// mend restores what the row is to say.
func (g *guarding) mend(ctx context.Context, row *bridgeRow, root *rootRow) error {
	set := ovsdb.Row{}
	var mended []string
	differs := func(what string, column string, value any) {
		mended = append(mended, what)
		set[column] = value
	}
	if row.FailMode == nil || *row.FailMode != string(ovs.FailModeSecure) {
		differs(MendedFailMode, "fail_mode", string(ovs.FailModeSecure))
	}
	if missing := func(p string) bool { return !slices.Contains(row.Protocols, p) }; len(row.Protocols) > 0 && slices.ContainsFunc(protocols, missing) {
		differs(MendedProtocols, "protocols", setOf(slices.Compact(slices.Sorted(slices.Values(slices.Concat(row.Protocols, protocols))))...))
	}
	if len(row.Controller) > 0 {
		differs(MendedController, "controller", setOf())
	}
	if kind := row.DatapathType; kind != g.bridge.cfg.DatapathType && (kind != "" || g.bridge.cfg.DatapathType != "system") {
		differs(MendedDatapath, "datapath_type", g.bridge.cfg.DatapathType)
	}
	config := maps.Clone(row.OtherConfig)
	if config == nil {
		config = make(map[string]string)
	}
	for _, key := range []string{MendedAddress, MendedDatapathID} {
		is, has := row.OtherConfig[key]
		was, had := g.known.OtherConfig[key]
		if is == was && has == had {
			continue
		}
		if config[key] = was; !had {
			delete(config, key)
		}
		differs(key, "other_config", mapOf(config))
	}
	if row.ExternalIDs[idAdoption] != adoptionDone {
		ids := maps.Clone(row.ExternalIDs)
		if ids == nil {
			ids = make(map[string]string)
		}
		ids[idAdoption] = adoptionDone
		differs(MendedRecord, "external_ids", mapOf(ids))
	}
	if len(mended) == 0 {
		return nil
	}
	err := g.bridge.transact(ctx,
		ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: "Bridge", Where: isRow(row.UUID), Row: set},
		ovsdb.Operation{Op: ovsdb.OperationMutate, Table: "Open_vSwitch", Where: isRow(root.UUID), Mutations: []ovsdb.Mutation{{Column: "next_cfg", Mutator: ovsdb.MutateOperationAdd, Value: 1}}})
	if err != nil {
		return fmt.Errorf("restore settings of bridge %s: %w", g.bridge.cfg.Name, err)
	}
	g.tell(mended...)
	g.followed(ctx)
	signal(g.bridge.reconnected) // Its flows may be gone.
	return nil
}

// followed waits until the switch has done what the database says, or for as long as it
// may take.
func (g *guarding) followed(ctx context.Context) {
	limit := time.After(mendTimeout)
	for {
		_, tables := g.bridge.ports.last()
		if _, root := rowOf(tables, g.bridge.cfg.Name); root == nil || root.CurCfg >= root.NextCfg {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case <-g.changed:
			defer signal(g.changed) // It may be more than that.
		}
	}
}

// tell says what was restored.
func (g *guarding) tell(what ...string) {
	g.bridge.log.Warn("others changed the bridge, which is restored", "what", strings.Join(what, ", "))
	if g.bridge.cfg.Mended != nil {
		for _, w := range what {
			g.bridge.cfg.Mended(w)
		}
	}
}

func isRow(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{{Column: "_uuid", Function: ovsdb.ConditionEqual, Value: ovsdb.UUID{GoUUID: uuid}}}
}

func setOf(values ...string) ovsdb.OvsSet {
	set := ovsdb.OvsSet{GoSet: []any{}}
	for _, v := range values {
		set.GoSet = append(set.GoSet, v)
	}
	return set
}

func mapOf(values map[string]string) ovsdb.OvsMap {
	m := ovsdb.OvsMap{GoMap: make(map[any]any)}
	for k, v := range values {
		m.GoMap[k] = v
	}
	return m
}

// rowOf are the rows of a bridge and of the switch in the copy of the database.
func rowOf(tables *cache.TableCache, bridge string) (row *bridgeRow, root *rootRow) {
	for _, r := range tables.Table("Bridge").Rows() {
		if br, ok := r.(*bridgeRow); ok && br.Name == bridge {
			row = br
		}
	}
	for _, r := range tables.Table("Open_vSwitch").Rows() {
		root, _ = r.(*rootRow)
	}
	return row, root
}

// KeepRecovery keeps on the bridge's row until when connections are recovered, for the
// Standing of whoever starts before; the zero time is kept by nothing.
func (b *Bridge) KeepRecovery(ctx context.Context, until time.Time) error {
	mutations := []ovsdb.Mutation{{Column: "external_ids", Mutator: ovsdb.MutateOperationDelete, Value: setOf(idRecovery)}}
	if !until.IsZero() {
		mutations = append(mutations, ovsdb.Mutation{Column: "external_ids", Mutator: ovsdb.MutateOperationInsert,
			Value: mapOf(map[string]string{idRecovery: strconv.FormatInt(until.Unix(), 10)})})
	}
	return b.transact(ctx, ovsdb.Operation{Op: ovsdb.OperationMutate, Table: "Bridge", Where: []ovsdb.Condition{{Column: "name", Function: ovsdb.ConditionEqual, Value: b.cfg.Name}}, Mutations: mutations})
}

// transact has the database carry out a transaction by the connection that follows it:
// no command is started, and no switch is waited for.
func (b *Bridge) transact(ctx context.Context, ops ...ovsdb.Operation) error {
	db, _ := b.ports.last()
	if db == nil {
		return fmt.Errorf("change database of bridge %s: %w", b.cfg.Name, ErrDisconnected)
	}
	// As in connect: a call that is cancelled is a data race inside the library.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	results, err := db.Transact(ctx, ops...)
	if err == nil {
		var refused []ovsdb.OperationError
		refused, err = ovsdb.CheckOperationResults(results, ops)
		for _, r := range refused {
			err = errors.Join(err, r)
		}
	}
	if err != nil {
		return fmt.Errorf("change database of bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}
