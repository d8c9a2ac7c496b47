"""Weight separation: one frozen base on a server, transcribing with the adapter that each person's device brings."""
