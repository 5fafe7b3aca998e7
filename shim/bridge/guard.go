package bridge

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// KeepRecovery keeps on the bridge's row until when connections are recovered, for the
// Standing of whoever starts before; the zero time is kept by nothing.
func (b *Bridge) KeepRecovery(ctx context.Context, until time.Time) error {
	drop := ovsdb.Mutation{Column: "external_ids", Mutator: ovsdb.MutateOperationDelete, Value: ovsdb.OvsSet{GoSet: []any{idRecovery}}}
	mutations := []ovsdb.Mutation{drop}
	if !until.IsZero() {
		mutations = append(mutations, ovsdb.Mutation{Column: "external_ids", Mutator: ovsdb.MutateOperationInsert,
			Value: ovsdb.OvsMap{GoMap: map[any]any{idRecovery: strconv.FormatInt(until.Unix(), 10)}}})
	}
	return b.transact(ctx, ovsdb.Operation{Op: ovsdb.OperationMutate, Table: "Bridge", Where: []ovsdb.Condition{{Column: "name", Function: ovsdb.ConditionEqual, Value: b.cfg.Name}}, Mutations: mutations})
}

// transact has the database carry out a transaction by the connection that follows it:
// no command is started, and no switch is waited for.
func (b *Bridge) transact(ctx context.Context, ops ...ovsdb.Operation) error {
	b.ports.mu.Lock()
	db := b.ports.db
	b.ports.mu.Unlock()
	if db == nil {
		return fmt.Errorf("change database of bridge %s: %w", b.cfg.Name, ErrDisconnected)
	}
	// As in connect: a call that is cancelled is a data race inside the library.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	results, err := db.Transact(ctx, ops...)
	if err == nil {
		_, err = ovsdb.CheckOperationResults(results, ops)
	}
	if err != nil {
		return fmt.Errorf("change database of bridge %s: %w", b.cfg.Name, err)
	}
	return nil
}
