"""Rewards, advantages, the joint loss and the trainer."""
