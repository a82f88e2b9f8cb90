"""`python -m mmrlhf …` is `mmrlhf …`."""

from mmrlhf.cli import main

main()
