"""What `strata deploy` tells the server to do by itself."""

import pytest

pytestmark = pytest.mark.server


def test_automations_replace_themselves_and_want_a_block_that_exists(prefect_home):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.client.orchestration import get_client

    from flows.automations import FAILED_NIGHT, LOST_RUN, register_automations
    from flows.recipe import BadInput

    hook = CustomWebhookNotificationBlock(name="hook", url="http://127.0.0.1:9/", method="POST")
    # Told so, as the browser's tests leave an event loop behind in which it would not wait.
    hook.save("operators", overwrite=True, _sync=True)
    with get_client(sync_client=True) as client:

        def known():
            return {automation.name: automation.id for automation in client.read_automations()}

        def registered():
            return sorted(known())

        assert register_automations(client) == [LOST_RUN]
        told = register_automations(client, notify="custom-webhook/operators")
        assert registered() == sorted(told) == sorted([LOST_RUN, FAILED_NIGHT])
        # Said again, as `strata up` does: what they have seen of runs under way is not forgotten.
        before = known()
        register_automations(client, notify="custom-webhook/operators")
        assert known() == before
        with pytest.raises(BadInput, match="'slack-webhook/nobody' is not on the server"):
            register_automations(client, notify="slack-webhook/nobody")
        assert registered() == sorted(told)
        # Without a block nobody is told any more.
        register_automations(client)
        assert registered() == [LOST_RUN]
