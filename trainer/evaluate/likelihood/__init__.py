"""The likelihood view's numbers, block by block and put together."""
