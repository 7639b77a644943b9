package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"

	"github.com/anishathalye/porcupine"
)

// event is a line of a history: the call of an operation, or its return. README.md lists the fields.
type event struct {
	ID     string `json:"id"`
	Call   *int64 `json:"call"`
	Return *int64 `json:"return"`

	Client   int      `json:"client"`
	Op       string   `json:"op"`
	Keys     []string `json:"keys"`
	Values   []string `json:"values"`
	Amount   int64    `json:"amount"`
	Expected string   `json:"expected"`

	Result  json.RawMessage `json:"result"`
	Failed  string          `json:"failed"`
	Unknown string          `json:"unknown"`
}

// history is what was read from a file. An operation on several keys may become several steps.
type history struct {
	steps      []porcupine.Operation
	operations int
	open       int
}

// pair is an operation: its call, and its return if there is one.
type pair struct {
	call event
	end  *event
}

func read(path string) (history, error) {
	pairs, err := readPairs(path)
	if err != nil {
		return history{}, err
	}
	result := history{operations: len(pairs)}
	for _, each := range pairs {
		known := each.end != nil && each.end.Unknown == ""
		if !known {
			result.open++
		}
		steps, err := split(each.call, each.end, known)
		if err != nil {
			return history{}, fmt.Errorf("operation %s (%s): %w", each.call.ID, each.call.Op, err)
		}
		for _, one := range steps {
			operation := porcupine.Operation{
				ClientId: each.call.Client, Input: one.input, Call: *each.call.Call, Output: one.output, Return: math.MaxInt64,
			}
			if known {
				operation.Return = *each.end.Return
			}
			result.steps = append(result.steps, operation)
		}
	}
	return result, nil
}

func readPairs(path string) ([]*pair, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var pairs []*pair
	byID := map[string]*pair{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 16<<20)
	for number := 1; lines.Scan(); number++ {
		var line event
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		known := byID[line.ID]
		switch {
		case line.Call != nil && known == nil:
			known = &pair{call: line}
			byID[line.ID] = known
			pairs = append(pairs, known)
		case line.Return != nil && known != nil && known.end == nil && *line.Return >= *known.call.Call:
			known.end = &line
		default:
			return nil, fmt.Errorf("line %d: neither the call of a new operation nor the return of one that is under way", number)
		}
	}
	return pairs, lines.Err()
}

// split returns the steps of an operation on the model. Operations on several keys promise nothing about what happens
// between their keys: each key is a step of its own. A read whose outcome is not known says nothing.
func split(call event, end *event, known bool) ([]step, error) {
	if call.Op == "multi_set" && len(call.Values) != len(call.Keys) {
		return nil, fmt.Errorf("%d values for %d keys", len(call.Values), len(call.Keys))
	}
	failed := ""
	if known {
		failed = end.Failed
	}
	switch call.Op {
	case "multi_set":
		var steps []step
		for i, key := range call.Keys {
			steps = append(steps, step{input{op: "set", keys: []string{key}, value: call.Values[i]}, output{known: known}})
		}
		return steps, nil
	case "set", "append", "add", "compare_set", "delete_key":
		return change(call, end, known, failed)
	}
	if !known {
		return nil, nil
	}
	return reading(call, end, failed)
}

// change returns the step of an operation that changes one key.
func change(call event, end *event, known bool, failed string) ([]step, error) {
	if len(call.Keys) != 1 || len(call.Values) > 1 {
		return nil, fmt.Errorf("it needs one key, and at most one value")
	}
	in := input{op: call.Op, keys: call.Keys, expected: call.Expected, amount: call.Amount}
	if len(call.Values) == 1 {
		in.value = call.Values[0]
	}
	out := output{known: known, failed: failed}
	if !known || failed != "" {
		return []step{{in, out}}, nil
	}
	var err error
	switch call.Op {
	case "add":
		err = json.Unmarshal(end.Result, &out.number)
	case "compare_set":
		err = json.Unmarshal(end.Result, &out.value)
	case "delete_key":
		err = json.Unmarshal(end.Result, &out.yes)
	}
	return []step{{in, out}}, err
}

// reading returns the steps of an operation that reads, whose outcome is known.
func reading(call event, end *event, failed string) ([]step, error) {
	one := step{input{op: call.Op, keys: call.Keys}, output{known: true, failed: failed}}
	var err error
	switch call.Op {
	case "get", "multi_get", "wait":
		return waiting(call, end, failed)
	case "check":
		if err = json.Unmarshal(end.Result, &one.output.yes); err == nil && one.output.yes {
			return eachKey(call.Keys, "check", func(int) output { return one.output }), nil
		}
	case "num_keys":
		err = json.Unmarshal(end.Result, &one.output.number)
	case "list_keys":
		err = json.Unmarshal(end.Result, &one.output.list)
	default:
		err = fmt.Errorf("unknown operation")
	}
	return []step{one}, err
}

// waiting returns the steps of an operation that waits for keys. If it failed, at least one was missing.
func waiting(call event, end *event, failed string) ([]step, error) {
	if failed != "" {
		return []step{{input{op: "check", keys: call.Keys}, output{known: true}}}, nil
	}
	var values []string
	var err error
	switch call.Op {
	case "wait":
		return eachKey(call.Keys, "wait", func(int) output { return output{known: true} }), nil
	case "get":
		values = make([]string, 1)
		err = json.Unmarshal(end.Result, &values[0])
	case "multi_get":
		err = json.Unmarshal(end.Result, &values)
	}
	if err == nil && len(values) != len(call.Keys) {
		err = fmt.Errorf("%d values for %d keys", len(values), len(call.Keys))
	}
	if err != nil {
		return nil, err
	}
	return eachKey(call.Keys, "get", func(i int) output { return output{known: true, value: values[i]} }), nil
}

func eachKey(keys []string, op string, result func(int) output) []step {
	var steps []step
	for i, key := range keys {
		steps = append(steps, step{input{op: op, keys: []string{key}}, result(i)})
	}
	return steps
}
