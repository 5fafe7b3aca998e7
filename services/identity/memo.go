package identity

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/utils/clock"
)

// memo remembers answers for a while, and has one question asked once at a time. It
// holds so many at the most; beyond, those that were used the longest ago go.
type memo[T any] struct {
	answers *cache.LRUExpireCache
	asking  singleflight.Group
}

func newMemo[T any](most int, c clock.Clock) *memo[T] {
	return &memo[T]{answers: cache.NewLRUExpireCacheWithClock(most, c)}
}

// get is the answer to a question that has a key. What ask returns with an error is
// not remembered. A caller who goes does not take the answer from others who wait for it.
func (m *memo[T]) get(ctx context.Context, key string, ask func(context.Context) (T, error)) (T, error) {
	if known, ok := m.answers.Get(key); ok {
		return known.(T), nil
	}
	asked := m.asking.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		answer, err := ask(ctx)
		if err == nil {
			m.answers.Add(key, answer, reviewAge)
		}
		return answer, err
	})
	var none T
	select {
	case r := <-asked:
		if r.Err != nil {
			return none, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// reviewAge is how old an answer of the cluster may be: what is granted or revoked
// counts after this.
const reviewAge = 10 * time.Second
