package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-kubernetes/libovsdb/cache"
	"github.com/ovn-kubernetes/libovsdb/client"
	"github.com/ovn-kubernetes/libovsdb/model"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Port is one interface on the bridge.
type Port struct {
	// ID is the interface's row: the port's identity. A port that is removed and
	// added again under its old name gets a new one, though maybe its old number.
	ID          string
	Name        string
	Number      uint32 // in OpenFlow; 0: none yet, or it could not be opened
	MAC         [6]byte
	ExternalIDs map[string]string // of the interface's row
	PortIDs     map[string]string // external_ids of the row of the port that it is part of
	AdminUp     bool
	LinkUp      bool
	Error       string // why it could not be opened; empty: it could
}

// Local tells whether it is the bridge's own interface.
func (p Port) Local() bool { return p.Number == openflow.PortLocal }

// Rows of the database, as far as we look at them.
type bridgeRow struct {
	UUID  string   `ovsdb:"_uuid"`
	Name  string   `ovsdb:"name"`
	Ports []string `ovsdb:"ports"`

	FailMode     *string           `ovsdb:"fail_mode"`
	Protocols    []string          `ovsdb:"protocols"`
	Controller   []string          `ovsdb:"controller"`
	DatapathType string            `ovsdb:"datapath_type"`
	OtherConfig  map[string]string `ovsdb:"other_config"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
}

// rootRow says how far the switch has followed the database.
type rootRow struct {
	UUID    string `ovsdb:"_uuid"`
	NextCfg int    `ovsdb:"next_cfg"`
	CurCfg  int    `ovsdb:"cur_cfg"`
}

type portRow struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"` // the schema's index, without which there is no copy
	Interfaces []string `ovsdb:"interfaces"`

	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type interfaceRow struct {
	UUID        string            `ovsdb:"_uuid"`
	Name        string            `ovsdb:"name"`
	OFPort      *int              `ovsdb:"ofport"`
	MACInUse    *string           `ovsdb:"mac_in_use"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
	AdminState  *string           `ovsdb:"admin_state"`
	LinkState   *string           `ovsdb:"link_state"`
	Error       *string           `ovsdb:"error"`
}

// databaseTimeout bounds the connection to the database, and so how long Run may
// take to end.
const databaseTimeout = 3 * time.Second

// portWatch follows the bridge's interfaces in the database.
type portWatch struct {
	bridge  *Bridge
	changed chan struct{}

	// mu guards what follows.
	mu     sync.Mutex
	db     client.Client     // nil until the first copy is complete
	tables *cache.TableCache // Of db, which itself forgets its copy when the connection ends.
	synced chan struct{}     // closed when db is set
}

func newPortWatch(b *Bridge) *portWatch {
	return &portWatch{bridge: b, changed: make(chan struct{}, 1), synced: make(chan struct{})}
}

// PortsChanged signals that Ports may answer differently. Signals that nobody
// took are one.
func (b *Bridge) PortsChanged() <-chan struct{} { return b.ports.changed }

// Ports lists the interfaces of the bridge, by name. It waits for the first
// copy of the database; a later outage of the database leaves the last copy.
func (b *Bridge) Ports(ctx context.Context) ([]Port, error) {
	select {
	case <-b.ports.synced:
	case <-ctx.Done():
		return nil, fmt.Errorf("list ports of bridge %s: %w", b.cfg.Name, ctx.Err())
	}
	_, tables := b.ports.last()
	return portsOf(tables, b.cfg.Name), nil
}

// ReadPorts reads the interfaces of the bridge once, for those who do not Run.
// That there is no such bridge is no error: it has none.
func (b *Bridge) ReadPorts(ctx context.Context) ([]Port, error) {
	db, tables, err := b.ports.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("read ports of bridge %s: %w", b.cfg.Name, err)
	}
	defer db.Close()
	return portsOf(tables, b.cfg.Name), nil
}

// Local is the bridge's own interface.
func (b *Bridge) Local(ctx context.Context) (Port, error) {
	ports, err := b.Ports(ctx)
	if err != nil {
		return Port{}, err
	}
	for _, p := range ports {
		if p.Local() {
			return p, nil
		}
	}
	return Port{}, fmt.Errorf("bridge %s has no interface of its own", b.cfg.Name)
}

// run follows the database until the context ends.
func (w *portWatch) run(ctx context.Context) {
	pause := w.bridge.cfg.MinBackoff
	failing := false
	for ctx.Err() == nil {
		db, tables, err := w.connect(ctx)
		if err == nil {
			pause, failing = w.bridge.cfg.MinBackoff, false
			w.publish(db, tables)
			select {
			case <-ctx.Done():
			case <-db.DisconnectNotify():
				err = errors.New("connection closed")
			}
			db.Close()
		}
		if ctx.Err() != nil {
			return
		}
		if !failing {
			w.bridge.log.Warn("no connection to switch database", "err", err)
			failing = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, w.bridge.cfg.MaxBackoff)
	}
}

func (w *portWatch) publish(db client.Client, tables *cache.TableCache) {
	w.mu.Lock()
	if w.db == nil {
		close(w.synced)
	}
	w.db, w.tables = db, tables
	w.mu.Unlock()
	signal(w.changed)
	signal(w.bridge.guarding.changed)
}

// last is the last connection to the database, and the last copy; nil before the first
// is complete.
func (w *portWatch) last() (client.Client, *cache.TableCache) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.db, w.tables
}

// signal says that a row of a table changed, to whom it may concern.
func (w *portWatch) signal(table string) {
	signal(w.bridge.guarding.changed)
	if table != "Open_vSwitch" {
		signal(w.changed)
	}
}

// connect makes a client, and a copy of the tables that is complete. The client
// lets go of the copy as soon as the connection ends: hence both.
func (w *portWatch) connect(ctx context.Context) (client.Client, *cache.TableCache, error) {
	dbModel, err := model.NewClientDBModel("Open_vSwitch", map[string]model.Model{
		"Bridge": &bridgeRow{}, "Port": &portRow{}, "Interface": &interfaceRow{}, "Open_vSwitch": &rootRow{},
	})
	if err != nil {
		return nil, nil, err
	}
	quiet := logr.Discard()
	db, err := client.NewOVSDBClient(dbModel, client.WithEndpoint(w.bridge.cfg.OVSDB), client.WithLogger(&quiet))
	if err != nil {
		return nil, nil, err
	}
	// Not with our context: a call that is cancelled while its answer comes in is
	// a data race inside the library (v0.8.1). The database is local and answers
	// at once, or is not there.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	if err := db.Connect(ctx); err != nil {
		db.Close()
		return nil, nil, err
	}
	tables := db.Cache()
	if tables == nil {
		db.Close()
		return nil, nil, errors.New("connection closed")
	}
	tables.AddEventHandler(&cache.EventHandlerFuncs{
		AddFunc:    func(table string, _ model.Model) { w.signal(table) },
		UpdateFunc: func(table string, _, _ model.Model) { w.signal(table) },
		DeleteFunc: func(table string, _ model.Model) { w.signal(table) },
	})
	br, port, ifc, root := &bridgeRow{}, &portRow{}, &interfaceRow{}, &rootRow{}
	_, err = db.Monitor(ctx, db.NewMonitor(
		client.WithTable(br, &br.Name, &br.Ports, &br.FailMode, &br.Protocols, &br.Controller, &br.DatapathType, &br.OtherConfig, &br.ExternalIDs),
		client.WithTable(root, &root.NextCfg, &root.CurCfg),
		client.WithTable(port, &port.Name, &port.Interfaces, &port.ExternalIDs),
		client.WithTable(ifc, &ifc.Name, &ifc.OFPort, &ifc.MACInUse, &ifc.ExternalIDs, &ifc.AdminState, &ifc.LinkState, &ifc.Error)))
	if err != nil {
		db.Close()
		return nil, nil, err
	}
	return db, tables, nil
}

// portsOf finds the interfaces of a bridge in the copy of the database.
func portsOf(tables *cache.TableCache, bridge string) []Port {
	var out []Port
	for _, row := range tables.Table("Bridge").Rows() {
		br, ok := row.(*bridgeRow)
		if !ok || br.Name != bridge {
			continue
		}
		for _, id := range br.Ports {
			port, ok := tables.Table("Port").Row(id).(*portRow)
			if !ok {
				continue
			}
			for _, id := range port.Interfaces {
				if ifc, ok := tables.Table("Interface").Row(id).(*interfaceRow); ok {
					p := ifc.port()
					p.PortIDs = port.ExternalIDs
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (r *interfaceRow) port() Port {
	p := Port{
		ID:          r.UUID,
		Name:        r.Name,
		ExternalIDs: r.ExternalIDs,
		AdminUp:     r.AdminState != nil && *r.AdminState == "up",
		LinkUp:      r.LinkState != nil && *r.LinkState == "up",
	}
	if r.Error != nil {
		p.Error = *r.Error
	}
	if r.OFPort != nil && *r.OFPort > 0 {
		p.Number = uint32(*r.OFPort)
		if p.Number == 0xfffe { // the database speaks OpenFlow 1.0
			p.Number = openflow.PortLocal
		}
	}
	if r.MACInUse != nil {
		if mac, err := net.ParseMAC(*r.MACInUse); err == nil && len(mac) == 6 {
			p.MAC = [6]byte(mac)
		}
	}
	return p
}
