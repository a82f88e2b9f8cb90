"""From judgements of any kind to a reward: heads on frozen towers, or the towers themselves."""
