package main

import (
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/anishathalye/porcupine"
)

// input is what an operation is called with.
type input struct {
	op       string
	keys     []string // none for an operation on the whole store
	value    string
	expected string
	amount   int64
}

// output is what an operation returned. If it is not known, the operation may have changed the store or not.
type output struct {
	known  bool
	failed string // "missing" or "not a number"
	value  string
	number int64
	yes    bool
	list   []string
}

type step struct {
	input  input
	output output
}

// entry is what the store has under a key.
type entry struct {
	exists  bool
	existed bool // at any time until now
	value   string
}

// state is the store, by key. A step never changes a state: it makes a new one.
type state map[string]entry

func (s state) with(key string, value string) state {
	next := maps.Clone(s)
	next[key] = entry{exists: true, existed: true, value: value}
	return next
}

func (s state) without(key string) state {
	next := maps.Clone(s)
	next[key] = entry{existed: s[key].existed}
	return next
}

// apply returns whether an operation may return this output in the state, and the state that follows. These are the
// promises of rendezvous.store.Store.
func apply(s state, in input, out output) (bool, state) {
	switch in.op {
	case "num_keys":
		return int64(len(s.names())) == out.number, s
	case "list_keys":
		return slices.Equal(s.names(), out.list), s
	case "check":
		all := true
		for _, key := range in.keys {
			all = all && s[key].exists
		}
		return all == out.yes, s
	}
	key := in.keys[0]
	stored := s[key]
	switch in.op {
	case "get":
		return stored.exists && stored.value == out.value, s
	case "wait":
		// A wait follows the key's history from the round's beginning, and may end before it learns of a deletion.
		return stored.existed, s
	case "set":
		return true, s.with(key, in.value)
	case "append":
		return true, s.with(key, stored.value+in.value)
	case "delete_key":
		return !out.known || out.yes == stored.exists, s.without(key)
	case "compare_set":
		if stored.value != in.expected {
			// A key that does not exist: what was expected is returned.
			result := in.expected
			if stored.exists {
				result = stored.value
			}
			return !out.known || out.value == result, s
		}
		return !out.known || out.value == in.value, s.with(key, in.value)
	case "add":
		number, err := strconv.ParseInt(stored.value, 10, 64)
		if stored.value == "" {
			number, err = 0, nil
		}
		if err != nil {
			return !out.known || out.failed == "not a number", s
		}
		sum := number + in.amount
		return !out.known || (out.failed == "" && out.number == sum), s.with(key, strconv.FormatInt(sum, 10))
	}
	panic("unknown operation " + in.op)
}

// names returns the keys that exist, sorted by their bytes.
func (s state) names() []string {
	names := []string{}
	for key, stored := range s {
		if stored.exists {
			names = append(names, key)
		}
	}
	sort.Strings(names)
	return names
}

func (s state) String() string {
	var parts []string
	for _, key := range s.names() {
		parts = append(parts, fmt.Sprintf("%s=%q", key, s[key].value))
	}
	return strings.Join(parts, " ")
}

var seed = maphash.MakeSeed()

var model = porcupine.Model{
	Partition: partition,
	Init:      func() any { return state{} },
	Step: func(s, in, out any) (bool, any) {
		return apply(s.(state), in.(input), out.(output))
	},
	Equal: func(a, b any) bool { return maps.Equal(a.(state), b.(state)) },
	Hash: func(s any) uint64 {
		var sum uint64
		for key, stored := range s.(state) {
			sum ^= maphash.Comparable(seed, key) ^ maphash.Comparable(seed, stored)*31
		}
		return sum
	},
	DescribeOperation: func(in, out any) string { return describe(in.(input), out.(output)) },
	DescribeState:     func(s any) string { return s.(state).String() },
}

func describe(in input, out output) string {
	call := fmt.Sprintf("%s(%s", in.op, strings.Join(in.keys, " "))
	switch in.op {
	case "set", "append":
		call += fmt.Sprintf(", %q", in.value)
	case "compare_set":
		call += fmt.Sprintf(", %q, %q", in.expected, in.value)
	case "add":
		call += fmt.Sprintf(", %d", in.amount)
	}
	call += ")"
	switch {
	case !out.known:
		return call + " -> not known"
	case out.failed != "":
		return call + " -> " + out.failed
	}
	switch in.op {
	case "add", "num_keys":
		return fmt.Sprintf("%s -> %d", call, out.number)
	case "check", "delete_key":
		return fmt.Sprintf("%s -> %v", call, out.yes)
	case "get", "compare_set":
		return fmt.Sprintf("%s -> %q", call, out.value)
	case "list_keys":
		return fmt.Sprintf("%s -> %v", call, out.list)
	}
	return call
}
