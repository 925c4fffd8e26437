"""Which partitions this worker owns, the state it keeps for each in a changelog, and the offsets stored with it.

Foreign writes and zombies
==========================

A zombie is a worker that has lost a partition and does not know it yet. It was paused (a suspended machine, a stalled
host) or cut off for longer than its session, the group assigned the partition to another worker, and the zombie
continues until it learns of the rebalance. Two workers with one ``worker.instance_id`` are the same case. Nothing
fences its producer, so its records are appended to the changelog between those of the owner: for the owner they are
foreign writes, as the owner's are for the zombie.

Detection
    A worker's store (RocksDB) has a checkpoint, the offset of the last changelog record that was applied to it. Every
    write waits for the offsets of its own records. If these are not exactly the next after the checkpoint, there are
    foreign writes among them (``ChangelogTable.write``).

    Offsets that are not above the checkpoint are no foreign writes: the changelog has lost its end
    (``streams.partitions.restoration``).

On detection
    Everything from the checkpoint to the last own record is read from the changelog and applied in the order of the
    offsets. So a store always equals its changelog up to the checkpoint, a zombie's store too. ``write`` returns false,
    ``foldtune_foreign_writes`` counts it, and ``TrainingSets.write`` drops what it derived from the partition: the
    index of segments, the erasures, and the note that the partition is purged. A worker that has learned of its loss
    meanwhile gets ``PartitionLostError``, and its store stays at the old checkpoint.

What each part relies on
    - Offsets: a zombie may store an older next offset. The owner continues from the one in its memory
      (``PartitionConsumer``); the next owner may start from the older one, and records are redelivered.
    - Segments: a key is made of the whole content, down to a digest. A foreign or repeated write adds an overlapping
      copy and overwrites nothing.
    - Fold: each input record counts once, whatever the number and order of its copies and however they were cut into
      segments.
    - Compaction: a step deletes only segments that it has read, after what it retains of them is durable, so two
      workers that do the same at once come to the same training sets. It leaves alone what lies behind the stored
      offset; an older one defers work.
    - Erasure: a zombie that merges segments can bring erased text back behind the mark "purged". So a new owner purges
      once whatever the mark says, and an owner purges again after a foreign write.
    - Coordinator: decisions are not idempotent, two of them could end a request twice. So the keys of its state carry a
      claim (``fencing.py``): what a zombie writes late has a key that nobody reads, and a worker publishes nothing once
      the changelog holds a higher claim. It writes to the partition before each decision, to see that. Final statuses
      have no claim: they follow from a stored decision, whose completion by a zombie and by the owner is the same.
    - Other topics: a zombie may publish an event again, also late. All readers are idempotent: commands and parts carry
      the request, the launchers' ledger starts a job once, and a status is the same again. The final status has a key
      of its own on the compacted ``fine-tune-status``, so that a late one of another state does not replace it; readers
      prefer a final status to any other (``foldtune.status_order``). SDKs of 0.1, which read a key that all statuses of
      a request share, may miss the end in that case.
    - Standbys: Faust may hand over changelog records of a standby after the partition became active. They are older
      than the store, so ``ChangelogTable`` drops them.

What is left
    - A foreign write after the owner's last own write is detected with its next one. That only delays: the owner writes
      with every block, before every published decision, and daily where something was erased.

``tests/unit/streams/training_sets/test_store.py`` and ``tests/unit/streams/requests/test_fencing.py`` run random
histories with zombies; ``tests/chaos`` pauses real workers.
"""
