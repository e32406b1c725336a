//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// account is a user of this machine, with all its groups.
type account struct {
	uid, gid int
	groups   []int
}

// findAccount finds a user that this process can become, by name or number.
func findAccount(name string) (*account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return nil, fmt.Errorf("there is no user %q", name)
		}
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("the groups of user %q: %w", name, err)
	}
	a := &account{}
	for _, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.Atoi(id)
		if err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		a.groups = append(a.groups, n)
	}
	a.uid, a.gid, a.groups = a.groups[0], a.groups[1], a.groups[2:]
	if os.Geteuid() != 0 && !a.current() {
		return nil, fmt.Errorf("only root can become user %q", name)
	}
	return a, nil
}

func (a *account) current() bool { return os.Getuid() == a.uid && os.Geteuid() == a.uid }

// become makes this process the account's, with all threads and for good.
func (a *account) become() error {
	if a.current() {
		return nil
	}
	// The groups first: who is not root any more cannot change them.
	if err := errors.Join(syscall.Setgroups(a.groups), syscall.Setgid(a.gid), syscall.Setuid(a.uid)); err != nil {
		return err
	}
	if !a.current() || syscall.Setuid(0) == nil {
		return errors.New("the rights of root are still there")
	}
	return nil
}
