"""The block manager alone."""

from chatbot.engine.torch.blocks import BlockManager, block_digest, root_digest

ROOT = root_digest("a")
TOKENS = tuple(range(16))


def test_blocks_move_between_empty_used_and_cached() -> None:
    manager = BlockManager(4)
    (block,) = manager.allocate(1) or []
    assert (manager.empty, manager.used, manager.cached) == (3, 1, 0)
    manager.seal(block, ROOT, TOKENS)
    manager.release([block])
    assert (manager.empty, manager.used, manager.cached) == (3, 0, 1)
    assert manager.find(ROOT, TOKENS) == block
    manager.hold(block)
    assert (manager.empty, manager.used, manager.cached) == (3, 1, 0)


def test_allocate_takes_all_or_nothing() -> None:
    manager = BlockManager(3)
    assert manager.allocate(4) is None
    assert manager.empty == 3
    assert sorted(manager.allocate(3) or []) == [0, 1, 2]
    assert manager.allocate(1) is None


def test_the_least_recently_used_prefix_goes_first_and_its_end_before_its_start() -> None:
    manager = BlockManager(3)
    blocks = manager.allocate(2) or []
    parent = manager.seal(blocks[0], ROOT, TOKENS)
    manager.seal(blocks[1], parent, TOKENS)
    manager.release(blocks)
    manager.allocate(2)  # the empty one and the end of the prefix
    assert manager.find(ROOT, TOKENS) == blocks[0]
    assert manager.find(parent, TOKENS) is None
    assert manager.evictions == 1


def test_another_namespace_or_another_beginning_is_not_found() -> None:
    manager = BlockManager(2)
    (block,) = manager.allocate(1) or []
    manager.seal(block, ROOT, TOKENS)
    assert manager.find(root_digest("b"), TOKENS) is None
    assert manager.find(block_digest(ROOT, TOKENS), TOKENS) is None
    assert manager.find(ROOT, TOKENS) == block


def test_tokens_are_compared_when_digests_collide() -> None:
    manager = BlockManager(2)
    (block,) = manager.allocate(1) or []
    manager.seal(block, ROOT, TOKENS)
    others = tuple(reversed(TOKENS))
    manager._found[block_digest(ROOT, others)] = block  # as if both had one digest
    assert manager.find(ROOT, others) is None


def test_blocks_that_are_not_to_be_kept_are_forgotten_unless_shared() -> None:
    manager = BlockManager(4)
    shared, own = manager.allocate(2) or []
    parent = manager.seal(shared, ROOT, TOKENS)
    manager.seal(own, parent, TOKENS)
    manager.hold(shared)
    manager.release([shared, own], keep=False)
    assert manager.find(ROOT, TOKENS) == shared
    assert manager.find(parent, TOKENS) is None
    assert (manager.empty, manager.used, manager.cached) == (3, 1, 0)


def test_the_same_prefix_computed_twice_is_kept_once() -> None:
    manager = BlockManager(2)
    first, second = manager.allocate(2) or []
    manager.seal(first, ROOT, TOKENS)
    manager.seal(second, ROOT, TOKENS)
    manager.release([first])
    manager.release([second])
    assert manager.find(ROOT, TOKENS) == first
    assert (manager.empty, manager.cached) == (1, 1)


def test_of_a_block_that_is_full_in_part_the_same_beginning_is_found() -> None:
    manager = BlockManager(4, block_size=4)
    for tokens in ([1, 2, 3], [1, 5]):  # the latest one is kept
        (block,) = manager.allocate(1) or []
        manager.seal_part(block, ROOT, tokens)
        manager.release([block])
    assert (manager.empty, manager.cached, manager.used) == (3, 1, 0)
    assert manager.find_part(root_digest("b"), [1, 5]) is None
    assert manager.find_part(ROOT, [2]) is None
    assert manager.find_part(ROOT, [1, 2, 3]) == (block, 1)
    assert manager.find_part(ROOT, [1, 5, 6]) == (block, 2)
    manager.allocate(4)
    assert manager.find_part(ROOT, [1, 5, 6]) is None


def test_the_beginning_of_a_full_block_is_found_whoever_uses_it() -> None:
    manager = BlockManager(4, block_size=4)
    (block,) = manager.allocate(1) or []
    manager.seal(block, ROOT, [1, 2, 3, 4])
    assert manager.find_part(ROOT, [1, 2, 9]) == (block, 2)
    manager.release([block])
    assert manager.find_part(ROOT, [1, 2, 9]) == (block, 2)
    manager.release(manager.allocate(1) or [], keep=False)
    assert manager.find(ROOT, [1, 2, 3, 4]) == block
