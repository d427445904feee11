"""What others offer for the same work, each set up as well as we could find out (``memtrain bench tune``)."""
