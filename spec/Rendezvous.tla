------------------------------ MODULE Rendezvous ------------------------------
(***************************************************************************)
(* The coordinated rendezvous (etcd-v3) of docs/design.md: nodes join by   *)
(* writing a key of their own, an elected coordinator writes the round     *)
(* record, and all nodes follow that record.                               *)
(*                                                                         *)
(* A request has one of four outcomes: it is applied and answered; it is   *)
(* applied and the answer is lost; it is lost; or it is late: its sender   *)
(* has given up, and etcd applies it at any later time.  Senders repeat    *)
(* what was not answered.                                                  *)
(*                                                                         *)
(* A node is a lease: a process that lost its lease comes back as another  *)
(* node.  Random ids that are never used again (the nonce of the           *)
(* coordinator's key, the attempt id of a roster) are counters here.       *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Nodes,      \* a set of numbers; their order is the order of ranks
    MinNodes,
    MaxNodes,
    MaxRound,   \* rounds are 1 .. MaxRound; a node that was in none has last = 0
    MaxLate,    \* how many requests may be late
    MaxLost,    \* how many leases may end
    MayClose    \* whether the rendezvous may be closed

VARIABLES
    \* etcd
    lease,      \* node -> "none", "live" or "ended"
    key,        \* node -> [last, rev]; rev = 0 means that the key does not exist
    coord,      \* [node, fence]; fence = 0 means that there is no coordinator
    log,        \* all round records in order: the last is current, its index is its revision
    rosters,    \* attempt -> the set of members; the shards under that attempt id
    boot,       \* [attempt, node]; attempt = 0 means that there is no bootstrap
    closedAt,   \* 0, or 1 + the revision of the round record when the rendezvous was closed
    late,       \* requests that may still be applied
    fences, attempts, lates, losts,  \* how many were used
    \* nodes
    state,      \* node -> "out", "joining" or "member"
    last,       \* node -> the last round that the node was in
    rev,        \* node -> the revision of its key as the node knows it
    place,      \* node -> [round, attempt] where it is a member
    met,        \* node -> the bootstrap that it received in its round
    seen,       \* node -> how much of the log its watch has delivered
    \* coordinators
    c           \* node -> what it knows as a coordinator; see Idle

etcd   == <<lease, key, coord, log, rosters, boot, closedAt>>
budget == <<late, fences, attempts, lates, losts>>
local  == <<state, last, rev, place, met, seen>>
vars   == <<etcd, budget, local, c>>

Attempts == 1 .. 2 * MaxRound + MaxLost + MaxLate
NoKey    == [last |-> 0, rev |-> 0]
NoCoord  == [node |-> 0, fence |-> 0]
NoBoot   == [attempt |-> 0, node |-> 0]
NoPlace  == [round |-> 0, attempt |-> 0]
Nothing  == [attempt |-> 0, members |-> {}, written |-> FALSE]
\* rev: the revision of the round record that it goes by; table: the keys that its watch has delivered;
\* pending: the attempt to complete the round that is under way.
Idle     == [fence |-> 0, rev |-> 0, table |-> [n \in Nodes |-> NoKey], pending |-> Nothing]

Initially == [round |-> 1, phase |-> "forming", attempt |-> 0, by |-> 0]
Record(i) == IF i = 0 THEN Initially ELSE log[i]
Current   == Record(Len(log))
First(members) == CHOOSE n \in members : \A m \in members : n <= m

Init ==
    /\ lease = [n \in Nodes |-> "none"]
    /\ key = [n \in Nodes |-> NoKey]
    /\ coord = NoCoord
    /\ log = <<>>
    /\ rosters = [a \in Attempts |-> {}]
    /\ boot = NoBoot
    /\ closedAt = 0
    /\ late = {} /\ fences = 0 /\ attempts = 0 /\ lates = 0 /\ losts = 0
    /\ state = [n \in Nodes |-> "out"]
    /\ last = [n \in Nodes |-> 0]
    /\ rev = [n \in Nodes |-> 0]
    /\ place = [n \in Nodes |-> NoPlace]
    /\ met = [n \in Nodes |-> NoBoot]
    /\ seen = [n \in Nodes |-> 0]
    /\ c = [n \in Nodes |-> Idle]

-----------------------------------------------------------------------------
(* Requests: what etcd does with each.  Each is a transaction; if its      *)
(* comparison fails it changes nothing.                                    *)

\* A node writes its key, and the coordinator's if there is none.
JoinRequest(n) == [kind |-> "join", node |-> n, last |-> last[n], rev |-> rev[n]]

ApplyJoin(r) ==
    /\ IF lease[r.node] = "live" /\ key[r.node].rev = r.rev
       THEN /\ key' = [key EXCEPT ![r.node] = [last |-> r.last, rev |-> r.rev + 1]]
            /\ IF coord = NoCoord
               THEN coord' = [node |-> r.node, fence |-> fences + 1] /\ fences' = fences + 1
               ELSE UNCHANGED <<coord, fences>>
       ELSE UNCHANGED <<key, coord, fences>>
    /\ UNCHANGED <<lease, log, rosters, boot, closedAt>>

\* A node puts itself forward after the coordinator's key has gone.
CampaignRequest(n) == [kind |-> "campaign", node |-> n]

ApplyCampaign(r) ==
    /\ IF lease[r.node] = "live" /\ coord = NoCoord
       THEN coord' = [node |-> r.node, fence |-> fences + 1] /\ fences' = fences + 1
       ELSE UNCHANGED <<coord, fences>>
    /\ UNCHANGED <<lease, key, log, rosters, boot, closedAt>>

Fenced(r) == coord = [node |-> r.node, fence |-> r.fence]

\* The coordinator writes the shards of a roster, under an attempt id of its own.
RosterRequest(n) ==
    [kind |-> "roster", node |-> n, fence |-> c[n].fence,
     attempt |-> c[n].pending.attempt, members |-> c[n].pending.members]

ApplyRoster(r) ==
    /\ rosters' = IF Fenced(r) THEN [rosters EXCEPT ![r.attempt] = r.members] ELSE rosters
    /\ UNCHANGED <<lease, key, coord, log, boot, closedAt, fences>>

\* The coordinator writes the round record.  Nothing completes, and no round opens, once closed.
RecordRequest(n, round, phase, attempt) ==
    [kind |-> "record", node |-> n, fence |-> c[n].fence, rev |-> c[n].rev,
     record |-> [round |-> round, phase |-> phase, attempt |-> attempt, by |-> c[n].fence]]

ApplyRecord(r) ==
    /\ IF Fenced(r) /\ Len(log) = r.rev /\ closedAt = 0
       THEN /\ log' = Append(log, r.record)
            /\ boot' = IF r.record.phase = "complete" THEN NoBoot ELSE boot
       ELSE UNCHANGED <<log, boot>>
    /\ UNCHANGED <<lease, key, coord, rosters, closedAt, fences>>

\* Rank 0 publishes where the workers meet.
BootRequest(n, known) ==
    [kind |-> "boot", node |-> n, attempt |-> place[n].attempt, known |-> known]

ApplyBoot(r) ==
    /\ boot' = IF boot = r.known THEN [attempt |-> r.attempt, node |-> r.node] ELSE boot
    /\ UNCHANGED <<lease, key, coord, log, rosters, closedAt, fences>>

Apply(r) ==
    CASE r.kind = "join"     -> ApplyJoin(r)
      [] r.kind = "campaign" -> ApplyCampaign(r)
      [] r.kind = "roster"   -> ApplyRoster(r)
      [] r.kind = "record"   -> ApplyRecord(r)
      [] r.kind = "boot"     -> ApplyBoot(r)

\* The outcomes in which the sender receives no answer.
Unanswered(r) ==
    \/ /\ Apply(r)
       /\ UNCHANGED <<late, attempts, lates, losts, local, c>>
    \/ /\ lates < MaxLate
       /\ lates' = lates + 1
       /\ late' = late \union {r}
       /\ UNCHANGED <<etcd, fences, attempts, losts, local, c>>

ApplyLate ==
    \E r \in late :
        /\ Apply(r)
        /\ late' = late \ {r}
        /\ UNCHANGED <<attempts, lates, losts, local, c>>

-----------------------------------------------------------------------------
(* Nodes.                                                                  *)

Grant(n) ==
    /\ state[n] = "out" /\ lease[n] = "none"
    /\ lease' = [lease EXCEPT ![n] = "live"]
    /\ state' = [state EXCEPT ![n] = "joining"]
    /\ UNCHANGED <<key, coord, log, rosters, boot, closedAt, budget, last, rev, place, met, seen, c>>

\* Whether the node knows that its key in etcd is up to date.
Written(n) == rev[n] > 0 /\ rev[n] = key[n].rev /\ key[n].last = last[n]

\* The answer contains the node's key as it is now, whether or not the comparison held.
Join(n) ==
    /\ state[n] = "joining" /\ ~Written(n) /\ lease[n] = "live"
    /\ \/ /\ Apply(JoinRequest(n))
          /\ rev' = [rev EXCEPT ![n] = key'[n].rev]
          /\ UNCHANGED <<late, attempts, lates, losts, state, last, place, met, seen, c>>
       \/ Unanswered(JoinRequest(n))

Campaign(n) ==
    /\ lease[n] = "live" /\ coord = NoCoord /\ closedAt = 0
    /\ \/ /\ Apply(CampaignRequest(n))
          /\ UNCHANGED <<late, attempts, lates, losts, local, c>>
       \/ Unanswered(CampaignRequest(n))

Watch(n) ==
    /\ state[n] # "out" /\ seen[n] < Len(log)
    /\ seen' = [seen EXCEPT ![n] = @ + 1]
    /\ UNCHANGED <<etcd, budget, state, last, rev, place, met, c>>

\* The node finds itself in the roster of a complete round.
Return(n) ==
    LET record == Record(seen[n]) IN
    /\ state[n] = "joining"
    /\ record.phase = "complete" /\ record.round > last[n] /\ n \in rosters[record.attempt]
    /\ state' = [state EXCEPT ![n] = "member"]
    /\ place' = [place EXCEPT ![n] = [round |-> record.round, attempt |-> record.attempt]]
    /\ met' = [met EXCEPT ![n] = NoBoot]
    /\ UNCHANGED <<etcd, budget, last, rev, seen, c>>

\* The node stops its workers and leaves the round, to join the next.
Leave(n) ==
    /\ state[n] = "member" /\ place[n].round < MaxRound
    /\ state' = [state EXCEPT ![n] = "joining"]
    /\ last' = [last EXCEPT ![n] = place[n].round]
    /\ UNCHANGED <<etcd, budget, rev, place, met, seen, c>>

\* A lease ends: the node died, or was cut off for too long.  The node may not know it.
Lose(n) ==
    /\ lease[n] = "live" /\ losts < MaxLost
    /\ losts' = losts + 1
    /\ lease' = [lease EXCEPT ![n] = "ended"]
    /\ key' = [key EXCEPT ![n] = NoKey]
    /\ coord' = IF coord.node = n THEN NoCoord ELSE coord
    /\ UNCHANGED <<log, rosters, boot, closedAt, late, fences, attempts, lates, local, c>>

Close(n) ==
    /\ MayClose /\ state[n] # "out" /\ closedAt = 0
    /\ closedAt' = Len(log) + 1
    /\ UNCHANGED <<lease, key, coord, log, rosters, boot, budget, local, c>>

RankZero(n) == state[n] = "member" /\ n = First(rosters[place[n].attempt])

Publish(n) ==
    /\ RankZero(n) /\ met[n] = NoBoot
    /\ \/ /\ Apply(BootRequest(n, boot))
          /\ met' = [met EXCEPT ![n] = [attempt |-> place[n].attempt, node |-> n]]
          /\ UNCHANGED <<late, attempts, lates, losts, state, last, rev, place, seen, c>>
       \/ Unanswered(BootRequest(n, boot))

\* A member believes only a bootstrap of its own round's attempt, by rank 0.
Meet(n) ==
    /\ state[n] = "member" /\ met[n] = NoBoot
    /\ boot.attempt = place[n].attempt /\ boot.node = First(rosters[place[n].attempt])
    /\ met' = [met EXCEPT ![n] = boot]
    /\ UNCHANGED <<etcd, budget, state, last, rev, place, seen, c>>

-----------------------------------------------------------------------------
(* The coordinator.                                                        *)

Coordinates(n) == c[n].fence # 0
Mine(n)        == Record(c[n].rev)
Candidates(n)  == {m \in Nodes : c[n].table[m].rev > 0 /\ c[n].table[m].last < Mine(n).round}

\* A node sees the coordinator's key with its own id, and reads the run.
TakeOver(n) ==
    /\ coord.node = n /\ coord.fence # c[n].fence
    /\ c' = [c EXCEPT ![n] = [fence |-> coord.fence, rev |-> Len(log), table |-> key, pending |-> Nothing]]
    /\ UNCHANGED <<etcd, budget, local>>

Observe(n) ==
    /\ Coordinates(n) /\ c[n].table # key
    /\ c' = [c EXCEPT ![n].table = key]
    /\ UNCHANGED <<etcd, budget, local>>

\* After an answer the coordinator knows the current record, or that it was replaced.
Informed(n) ==
    c' = [c EXCEPT ![n] = IF coord' = [node |-> n, fence |-> @.fence]
                          THEN [@ EXCEPT !.rev = Len(log'),
                                         !.pending = IF Len(log') = c[n].rev THEN @ ELSE Nothing]
                          ELSE Idle]

WriteRecord(n, round, phase, attempt) ==
    \/ /\ Apply(RecordRequest(n, round, phase, attempt))
       /\ Informed(n)
       /\ UNCHANGED <<late, attempts, lates, losts, local>>
    \/ Unanswered(RecordRequest(n, round, phase, attempt))

Open(n) ==
    /\ Coordinates(n) /\ Mine(n).phase = "complete" /\ Mine(n).round < MaxRound
    /\ \A m \in rosters[Mine(n).attempt] :
           c[n].table[m].rev = 0 \/ c[n].table[m].last >= Mine(n).round
    /\ WriteRecord(n, Mine(n).round + 1, "forming", 0)

BeginLastCall(n) ==
    /\ Coordinates(n) /\ Mine(n).phase = "forming" /\ Cardinality(Candidates(n)) >= MinNodes
    /\ WriteRecord(n, Mine(n).round, "last call", 0)

EndLastCall(n) ==
    /\ Coordinates(n) /\ Mine(n).phase = "last call" /\ Cardinality(Candidates(n)) < MinNodes
    /\ WriteRecord(n, Mine(n).round, "forming", 0)

\* The members are chosen once for an attempt.
Choose(n) ==
    /\ Coordinates(n) /\ c[n].pending = Nothing /\ attempts + 1 \in Attempts
    /\ \/ Mine(n).phase = "last call" /\ Cardinality(Candidates(n)) >= MinNodes
       \/ Mine(n).phase = "forming" /\ Cardinality(Candidates(n)) >= MaxNodes
    /\ \E members \in SUBSET Candidates(n) :
        /\ members = Candidates(n) \/ Cardinality(members) = MaxNodes
        /\ Cardinality(members) <= MaxNodes
        /\ c' = [c EXCEPT ![n].pending = [attempt |-> attempts + 1, members |-> members, written |-> FALSE]]
    /\ attempts' = attempts + 1
    /\ UNCHANGED <<etcd, late, fences, lates, losts, local>>

WriteRoster(n) ==
    /\ Coordinates(n) /\ c[n].pending # Nothing /\ ~c[n].pending.written
    /\ \/ /\ Apply(RosterRequest(n))
          /\ c' = [c EXCEPT ![n] = IF coord = [node |-> n, fence |-> @.fence]
                                   THEN [@ EXCEPT !.pending.written = TRUE] ELSE Idle]
          /\ UNCHANGED <<late, attempts, lates, losts, local>>
       \/ Unanswered(RosterRequest(n))

Complete(n) ==
    /\ Coordinates(n) /\ c[n].pending.written
    /\ WriteRecord(n, Mine(n).round, "complete", c[n].pending.attempt)

-----------------------------------------------------------------------------
Next ==
    \/ ApplyLate
    \/ \E n \in Nodes :
        \/ Grant(n) \/ Join(n) \/ Campaign(n) \/ Watch(n) \/ Return(n) \/ Leave(n) \/ Lose(n) \/ Close(n)
        \/ Publish(n) \/ Meet(n)
        \/ TakeOver(n) \/ Observe(n) \/ Open(n) \/ BeginLastCall(n) \/ EndLastCall(n)
        \/ Choose(n) \/ WriteRoster(n) \/ Complete(n)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold (the invariants of docs/design.md).                      *)

Completed == {i \in 1 .. Len(log) : log[i].phase = "complete"}

Agreement ==
    /\ \A i, j \in Completed : log[i].round = log[j].round => log[i].attempt = log[j].attempt
    /\ \A n \in Nodes : state[n] = "member" => n \in rosters[place[n].attempt]
    /\ \A m, n \in Nodes :
           state[m] = "member" /\ state[n] = "member" /\ place[m].round = place[n].round => place[m] = place[n]

\* A node is in its round until it leaves, or its lease ends at etcd. What its key contains does not matter.
Exclusivity ==
    Current.phase = "complete" =>
        \A n \in Nodes : state[n] = "member" /\ lease[n] = "live" => place[n].round >= Current.round

Bounds == \A i \in Completed : Cardinality(rosters[log[i].attempt]) \in MinNodes .. MaxNodes

Monotony ==
    \A i \in 1 .. Len(log) - 1 :
        /\ log[i].round <= log[i + 1].round
        /\ log[i].round = log[i + 1].round => log[i].phase # "complete"

Fencing == \A i \in 1 .. Len(log) - 1 : log[i].by <= log[i + 1].by

ClosedIsFinal == closedAt # 0 => Len(log) = closedAt - 1

OneMeetingPoint ==
    \A n \in Nodes : state[n] = "member" /\ met[n] # NoBoot =>
        met[n] = [attempt |-> place[n].attempt, node |-> First(rosters[place[n].attempt])]

Safety ==
    Agreement /\ Exclusivity /\ Bounds /\ Monotony /\ Fencing /\ ClosedIsFinal /\ OneMeetingPoint

-----------------------------------------------------------------------------
(* Liveness: once no more leases end and no more requests are late, a      *)
(* round is complete and all of its members are in it, unless too few      *)
(* nodes are left.                                                         *)

Live == {n \in Nodes : lease[n] = "live"}

\* Whether num_nodes_waiting() of a member is not 0: another member left or is lost, or a node waits that fits in.
Waiting(n) ==
    LET members == rosters[place[n].attempt] IN
    \/ \E m \in members : key[m].rev = 0 \/ key[m].last >= place[n].round
    \/ Cardinality(members) < MaxNodes /\ \E m \in Nodes \ members : key[m].rev > 0

Fairness ==
    \A n \in Nodes :
        /\ WF_vars(Grant(n)) /\ WF_vars(Join(n)) /\ WF_vars(Campaign(n)) /\ WF_vars(Watch(n))
        /\ WF_vars(Return(n)) /\ WF_vars(Leave(n) /\ Waiting(n)) /\ WF_vars(Publish(n)) /\ WF_vars(Meet(n))
        /\ WF_vars(TakeOver(n)) /\ WF_vars(Observe(n)) /\ WF_vars(Open(n)) /\ WF_vars(BeginLastCall(n))
        /\ WF_vars(EndLastCall(n)) /\ WF_vars(Choose(n)) /\ WF_vars(WriteRoster(n)) /\ WF_vars(Complete(n))

Settled ==
    \/ closedAt # 0
    \/ Cardinality(Live) < MinNodes
    \/ /\ Current.phase = "complete"
       /\ \A n \in rosters[Current.attempt] \intersect Live :
              /\ state[n] = "member" /\ place[n].round = Current.round
              /\ met[n] # NoBoot \/ lease[First(rosters[Current.attempt])] = "ended"

Settles == <>[]Settled

FairSpec == Spec /\ Fairness
=============================================================================
