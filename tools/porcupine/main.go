// Checks histories of the round's store for linearizability with porcupine. README.md describes the histories.
//
// Usage: porcupine [-timeout DURATION] [-pictures FOLDER] HISTORY...
//
// For each history it prints one line of JSON. The exit code is 1 if a history is not linearizable or could not be
// decided in time, and 2 if one cannot be read.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// verdict is what is printed for a history.
type verdict struct {
	File       string  `json:"file"`
	Result     string  `json:"result"` // "Ok", "Illegal" or "Unknown"
	Operations int     `json:"operations"`
	Open       int     `json:"open"` // operations whose outcome is not known
	Partitions int     `json:"partitions"`
	Seconds    float64 `json:"seconds"`
	Failing    string  `json:"failing,omitempty"` // the keys of the first partition that is not linearizable
	Picture    string  `json:"picture,omitempty"`
}

func check(path string, timeout time.Duration, pictures string) (verdict, error) {
	history, err := read(path)
	if err != nil {
		return verdict{}, fmt.Errorf("%s: %w", path, err)
	}
	began := time.Now()
	parts := partition(history.steps)
	result := verdict{
		File: path, Result: string(porcupine.Ok), Operations: history.operations, Open: history.open,
		Partitions: len(parts),
	}
	for _, part := range parts {
		outcome := porcupine.CheckOperationsTimeout(model, part, timeout)
		if outcome == porcupine.Ok {
			continue
		}
		result.Result, result.Failing = string(outcome), strings.Join(keysOf(part), " ")
		if outcome == porcupine.Illegal {
			break
		}
	}
	result.Seconds = time.Since(began).Seconds()
	if result.Result == string(porcupine.Illegal) && pictures != "" {
		result.Picture = filepath.Join(pictures, strings.TrimSuffix(filepath.Base(path), ".ndjson")+".html")
		_, info := porcupine.CheckOperationsVerbose(model, history.steps, timeout)
		if err := porcupine.VisualizePath(model, info, result.Picture); err != nil {
			return verdict{}, err
		}
	}
	return result, nil
}

func main() {
	timeout := flag.Duration("timeout", time.Minute, "how long one partition of a history may take")
	pictures := flag.String("pictures", "", "folder for a page that shows each history that is not linearizable")
	flag.Parse()
	code := 0
	output := json.NewEncoder(os.Stdout)
	for _, path := range flag.Args() {
		result, err := check(path, *timeout, *pictures)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if err := output.Encode(result); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if result.Result != string(porcupine.Ok) {
			code = 1
		}
	}
	os.Exit(code)
}
