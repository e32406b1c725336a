package swarmstore

import (
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// cooldown is how long a node that did not answer is left alone before it is asked again.
const cooldown = 250 * time.Millisecond

// contact tells whether a node answers. One that did not is lost: what is for it fails at once, so that it costs its swarms
// only, and who looks for the one that has taken its place does not wait for it either. As long as somebody wants it, it is asked
// in the background whether it is back.
type contact struct {
	store  *Store
	addr   string
	lost   atomic.Pointer[error] // what it failed with last, or nil
	asking atomic.Bool
}

func (s *Store) contact(addr string) *contact {
	if c, ok := s.contacts.Load(addr); ok {
		return c.(*contact)
	}
	c, _ := s.contacts.LoadOrStore(addr, &contact{store: s, addr: addr})
	return c.(*contact)
}

func (c *contact) lose(err error) { c.lost.Store(&err) }

// err is what the node failed with if it is lost.
func (c *contact) err() error {
	lost := c.lost.Load()
	if lost == nil {
		return nil
	}
	if c.asking.CompareAndSwap(false, true) {
		c.store.goes(c.ask)
	}
	return *lost
}

// ask the node, after a while, whatever it answers to: INFO, which a gateway needs anyway.
func (c *contact) ask() {
	defer c.asking.Store(false)
	select {
	case <-time.After(cooldown):
	case <-c.store.ctx.Done():
		return
	}
	o := *c.store.redis
	o.Addr, o.Dialer, o.OnConnect = c.addr, c.store.reach, nil
	client := redis.NewClient(&o)
	defer client.Close()
	if err := client.Info(c.store.ctx, "server").Err(); err != nil && !isReply(err) {
		c.lose(err)
		return
	}
	c.lost.Store(nil)
}
