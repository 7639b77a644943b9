package main

import (
	"maps"
	"slices"

	"github.com/anishathalye/porcupine"
)

// partition divides a history into parts that can be checked one by one: keys are in one part if an operation joins
// them. An operation without keys joins all.
func partition(history []porcupine.Operation) [][]porcupine.Operation {
	parent := map[string]string{}
	var root func(string) string
	root = func(key string) string {
		if up, found := parent[key]; found && up != key {
			parent[key] = root(up)
			return parent[key]
		}
		parent[key] = key
		return key
	}
	whole := false
	for _, operation := range history {
		keys := operation.Input.(input).keys
		whole = whole || len(keys) == 0
		for _, key := range keys {
			parent[root(key)] = root(keys[0])
		}
	}
	if whole || len(history) == 0 {
		return [][]porcupine.Operation{history}
	}
	parts := map[string][]porcupine.Operation{}
	for _, operation := range history {
		name := root(operation.Input.(input).keys[0])
		parts[name] = append(parts[name], operation)
	}
	var result [][]porcupine.Operation
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		result = append(result, parts[name])
	}
	return result
}

// keysOf returns the keys of a part, sorted.
func keysOf(part []porcupine.Operation) []string {
	keys := map[string]bool{}
	for _, operation := range part {
		for _, key := range operation.Input.(input).keys {
			keys[key] = true
		}
	}
	return slices.Sorted(maps.Keys(keys))
}
